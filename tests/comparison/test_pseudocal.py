# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""PseudoCal: who is mixed with whom, what is predicted, what the label is, and the temperature that follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor

from dacal_med.comparison.calibrators import fit_temperature
from dacal_med.comparison.pseudocal import IGNORED, pseudo_target, pseudo_target_pairs
from dacal_med.io.errors import InputError

SIZES = {2: (9, 6), 3: (5, 6, 4)}


def predict(image: Tensor) -> Tensor:
    """Class 1 with probability ``sigmoid(4 x)``."""
    return torch.cat([-4 * image, 4 * image], dim=1).div(2).softmax(dim=1)


def images(dims: int, count: int = 4) -> list[Tensor]:
    g = torch.Generator().manual_seed(dims)
    return [torch.randn(1, 1, *SIZES[dims], generator=g) for _ in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_each_image_is_dominant_once_and_partner_of_another_once(count):
    for seed in range(5):
        pairs = pseudo_target_pairs([torch.zeros(1)] * count, seed)
        assert [dominant for dominant, _ in pairs] == list(range(count))
        assert sorted(partner for _, partner in pairs) == list(range(count))
        assert all(dominant != partner for dominant, partner in pairs)
    assert pseudo_target_pairs([torch.zeros(1)] * 8, 1) == pseudo_target_pairs([torch.zeros(1)] * 8, 1)
    assert pseudo_target_pairs([torch.zeros(1)] * 8, 1) != pseudo_target_pairs([torch.zeros(1)] * 8, 2)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("kind", [Tensor, MetaTensor])
def test_mixtures_and_labels(dims, kind):
    x = images(dims)
    result = pseudo_target(predict, [kind(i) for i in x], mix=0.7, seed=3)
    for (i, j), found in zip(pseudo_target_pairs(x, 3), result, strict=True):
        mixture = 0.7 * x[i] + 0.3 * x[j]
        torch.testing.assert_close(found.image, mixture)
        torch.testing.assert_close(found.probabilities, predict(mixture))
        expected = torch.where((x[i] > 0) == (x[j] > 0), IGNORED, (x[i] > 0).long())
        assert torch.equal(found.label.long(), expected)
        assert type(found.image) is Tensor and type(found.label) is Tensor
    everywhere = pseudo_target(predict, x, mix=0.7, seed=3, differing_only=False)
    for i, found in enumerate(everywhere):
        assert torch.equal(found.label.long(), (x[i] > 0).long())


def test_the_paper_s_mix_is_the_default():
    x = images(2, count=2)
    torch.testing.assert_close(pseudo_target(predict, x)[0].image, 0.65 * x[0] + 0.35 * x[1])


def test_images_of_different_sizes_are_cropped_about_their_centres():
    wide, high = torch.randn(1, 1, 4, 10), torch.randn(1, 1, 8, 6)
    first, second = pseudo_target(predict, [wide, high], differing_only=False)
    a, b = wide[..., 2:8], high[..., 2:6, :]
    torch.testing.assert_close(first.image, 0.65 * a + 0.35 * b)
    torch.testing.assert_close(second.image, 0.65 * b + 0.35 * a)
    assert torch.equal(first.label.long(), (a > 0).long()) and torch.equal(second.label.long(), (b > 0).long())


def test_each_image_is_predicted_whole_and_each_mixture_once():
    sizes = []

    def counting(image):
        sizes.append(tuple(image.shape[2:]))
        return predict(image)

    pseudo_target(counting, [torch.randn(1, 1, 4, 10), torch.randn(1, 1, 8, 6)])
    assert sizes == [(4, 10), (8, 6), (4, 6), (4, 6)]


def test_the_temperature_in_closed_form():
    # Of class 1 mixed with class 0: logits +2 and -1 apart in two voxels, the second outweighed by its partner.
    first = torch.tensor([1.0, 1.0]).view(1, 1, 2)
    second = torch.tensor([-0.15 / 0.35, -0.9 / 0.35]).view(1, 1, 2)
    (data, _) = pseudo_target(predict, [first, second])
    assert data.label.flatten().tolist() == [1, 1]
    margin = torch.tensor([2.0, -1.0])
    torch.testing.assert_close(data.probabilities[0, 1], torch.sigmoid(margin))
    # The best inverse temperature b solves 2 sigmoid(-2 b) = sigmoid(b); with t = exp(-b): t^2 + 2 t^3 = 1.
    roots = np.roots([2.0, 1.0, 0.0, -1.0])
    t = float(roots[np.isreal(roots)].real[0])
    assert fit_temperature([data]).temperature == pytest.approx(-1 / np.log(t), rel=1e-4)


def test_predictions_that_agree_everywhere_leave_nothing_to_fit_on():
    x = [torch.ones(1, 1, 4, 4), torch.full((1, 1, 4, 4), 2.0)]
    with pytest.raises(InputError, match="nothing to fit"):
        fit_temperature(pseudo_target(predict, x))


def test_what_cannot_be_mixed_is_refused():
    with pytest.raises(InputError, match="found 1, wanted at least 2"):
        pseudo_target(predict, images(2, count=1))
    for mix in (0.5, 1.0, 0.2):
        with pytest.raises(InputError, match="mix"):
            pseudo_target(predict, images(2), mix=mix)
