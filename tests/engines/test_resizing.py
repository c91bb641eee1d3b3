# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A network that sees the image smaller is measured at the label's own size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers import SlidingWindowInferer
from PIL import Image
from torch import nn

from dacal_med.engines import CalibrationEvaluator, ResizingInferer
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.io.errors import InputError


class Threshold(nn.Module):
    """Two classes by brightness, almost certain; remembers the sizes it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image):
        self.seen.append(tuple(image.shape[2:]))
        return torch.cat([0.0 * image, 40.0 * (image - 0.5)], dim=1)


def halves(dims: int, size: int = 8) -> dict[str, torch.Tensor]:
    """An image and its label, black before the middle of the first axis and white behind."""
    label = torch.zeros(1, *[size] * dims)
    label[:, size // 2 :] = 1
    return {"image": label.clone(), "label": label.long()}


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_sees_the_image_smaller_and_is_measured_at_the_size_of_the_label(dims):
    network = Threshold()
    inferer = ResizingInferer(0.5)
    item = halves(dims)
    evaluator = CalibrationEvaluator("cpu", [item], network, ["black", "white"], inferer, background=None)
    evaluator.run()
    assert network.seen == [(4,) * dims]
    assert evaluator.scores["voxels"] == 8**dims
    # Interpolated probabilities at the edge are 3/4 to 1/4: on the right side, so that nothing is lost.
    assert evaluator.scores["miou"] == 1.0
    probabilities = predict_probabilities(inferer, network, item["image"][None])
    along = probabilities[0, 1].reshape(8, -1)[:, 0]
    torch.testing.assert_close(along, torch.tensor([0, 0, 0, 0.25, 0.75, 1, 1, 1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_half_the_size_is_the_mean_of_what_a_pixel_covers(dims):
    image = torch.rand(1, 2, *[8] * dims)
    seen = []
    ResizingInferer(0.5)(image, lambda x: seen.append(x) or x)
    pool = nn.AvgPool2d(2) if dims == 2 else nn.AvgPool3d(2)
    torch.testing.assert_close(seen[0], pool(image))


def test_scaling_up_is_that_of_another_library():
    """Where pixels are added, smoothing has no part in it, and Pillow's bilinear filter is the same."""
    values = torch.rand(5, 7)
    found = ResizingInferer(0.5)(torch.rand(1, 1, 10, 14), lambda x: values[None, None])
    expected = Image.fromarray(values.numpy()).resize((14, 10), Image.Resampling.BILINEAR)
    torch.testing.assert_close(found[0, 0], torch.from_numpy(np.array(expected)), atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    scale=st.floats(0.1, 3.0),
    classes=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_probabilities_stay_probabilities_whatever_the_size(shape, scale, classes, seed):
    generator = torch.Generator().manual_seed(seed)

    def network(image):
        return 5 * torch.randn(1, classes, *image.shape[2:], generator=generator)

    module = nn.Module()
    module.forward = network
    result = predict_probabilities(ResizingInferer(scale), module, torch.zeros(1, 1, *shape))
    assert tuple(result.shape) == (1, classes, *shape)
    assert float(result.min()) >= 0.0
    torch.testing.assert_close(result.sum(dim=1), torch.ones(1, *shape))


def test_windows_slide_over_the_scaled_image():
    network = Threshold()
    windows = SlidingWindowInferer([4, 4], sw_batch_size=1, overlap=0.0)
    ResizingInferer((0.5, 1.0), windows)(halves(2)["image"][None], network)
    assert network.seen == [(4, 4), (4, 4)]


def test_without_scaling_nothing_is_interpolated():
    image = torch.rand(1, 1, 5, 4)
    assert torch.equal(ResizingInferer(1.0)(image, lambda x: x), image)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), (), (0.5, 0.0)])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(InputError, match=r"ResizingInferer: found scale .*, wanted a positive factor"):
        ResizingInferer(scale)


def test_one_factor_for_each_axis():
    with pytest.raises(InputError, match="found 2 factors for 3 axes"):
        ResizingInferer((0.5, 0.5))(torch.zeros(1, 1, 4, 4, 4), lambda x: x)
