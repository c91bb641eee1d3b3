# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The mean teacher against its definition."""

from __future__ import annotations

import pytest
import torch

from dacal_med.core.batch import soft_cross_entropy
from dacal_med.core.mixing import complementary_mixes
from dacal_med.engines.hosts import MeanTeacher, pseudo_batch
from dacal_med.io.errors import InputError
from tests.engines.hosts.builders import blank, example


def test_the_student_learns_the_teachers_labels_of_whole_target_images():
    batch, mask, soft, hard = example()
    source, consistency = MeanTeacher(noise=0.0, consistency_weight=3.0).terms(batch, mask, soft, hard)
    assert (source.name, source.truth) == ("source", True)
    assert (consistency.name, consistency.truth, consistency.weight) == ("consistency", False, 3.0)
    assert torch.equal(consistency.batch.image, batch.target_image)
    # By hand: 0.4 * (-0.7 log 0.5 - 0.3 log 0.5) at every voxel.
    loss = soft_cross_entropy(torch.zeros(1, 2, 2, 2), consistency.batch.targets, consistency.batch.weights)
    assert float(loss) == pytest.approx(0.4 * 0.693147, abs=1e-5)
    assert [t.name for t in MeanTeacher().terms(batch, None, None, None)] == ["source"]


@pytest.mark.parametrize("size", [(64, 64), (16, 16, 16)])
def test_the_student_alone_sees_noise_in_units_of_the_images_deviation(size):
    batch, pseudo = blank(size)
    batch.target_image.mul_(torch.tensor([0.1, 50.0]).view(2, *[1] * (len(size) + 1)))
    image = MeanTeacher(noise=0.15).terms(batch, None, pseudo, pseudo)[1].batch.image
    noise = (image - batch.target_image).flatten(1)
    torch.testing.assert_close(noise.std(1), 0.15 * batch.target_image.flatten(1).std(1), rtol=0.1, atol=0.0)
    torch.manual_seed(4)
    first = MeanTeacher().terms(batch, None, pseudo, pseudo)[1].batch.image
    torch.manual_seed(4)
    assert torch.equal(first, MeanTeacher().terms(batch, None, pseudo, pseudo)[1].batch.image)


def test_the_bilevel_step_looks_ahead_on_the_target_and_is_judged_on_whole_source_images():
    batch, _, soft, _ = example()
    mask = MeanTeacher().mask_generator(batch.source_labels)
    inner, outer = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, soft))
    assert torch.equal(inner.image, batch.target_image)
    assert torch.equal(inner.targets, soft.probabilities)
    assert torch.equal(outer.image, batch.source.image)
    assert torch.equal(outer.targets, batch.source.targets)
    assert torch.equal(outer.weights, batch.source.weights)


def test_negative_settings_are_refused():
    with pytest.raises(InputError, match="noise=-1"):
        MeanTeacher(noise=-1)
    with pytest.raises(InputError, match="consistency_weight=nan"):
        MeanTeacher(consistency_weight=float("nan"))
