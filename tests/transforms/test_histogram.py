# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Histogram matching against scikit-image on the same arrays."""

from __future__ import annotations

import pytest
import torch
from skimage.exposure import match_histograms

from dacal_med.transforms.histogram import RandHistogramMatch


def image(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 9, 8), (3, 9, 8), (2, 5, 6, 7)])
def test_full_match_is_scikit_images(shape: tuple[int, ...]) -> None:
    ours, reference = image(0, *shape), image(1, *shape) ** 3
    matched = RandHistogramMatch([{"image": reference}], prob=1.0, blend=1.0)(ours)
    wanted = match_histograms(ours.numpy(), reference.numpy(), channel_axis=0)
    assert torch.allclose(matched, torch.as_tensor(wanted, dtype=torch.float32), atol=1e-6)


def test_blend_is_a_convex_mix() -> None:
    ours, reference = image(0, 1, 9, 9), image(1, 1, 9, 9) ** 3
    full = RandHistogramMatch([reference], prob=1.0, blend=1.0)(ours)
    assert torch.allclose(RandHistogramMatch([reference], 1.0, 0.25)(ours), 0.75 * ours + 0.25 * full, atol=1e-6)
    assert torch.equal(RandHistogramMatch([reference], 1.0, 0.0)(ours), ours)


def test_matching_itself_changes_nothing() -> None:
    ours = image(0, 2, 6, 6, 6)
    assert torch.allclose(RandHistogramMatch([ours], 1.0, 1.0)(ours), ours, atol=1e-6)


def test_background_is_left_out() -> None:
    ours, reference = image(0, 1, 8, 8) * 0.4 + 0.1, image(1, 1, 8, 8) * 0.2 + 0.8
    ours[:, :6], reference[:, :1] = 0.0, 0.0
    matched = RandHistogramMatch([reference], 1.0, 1.0, above=0.05)(ours)
    assert bool((matched[:, :6] == 0).all())
    assert float(matched[:, 6:].min()) >= 0.8
    whole = RandHistogramMatch([reference], 1.0, 1.0)(ours)
    assert float(whole[:, :6].max()) > 0.05, "without it, background is stretched into the reference's tissue"


def test_nothing_above_leaves_the_channel() -> None:
    ours = torch.zeros(1, 4, 4)
    assert torch.equal(RandHistogramMatch([image(0, 1, 4, 4)], 1.0, 1.0, above=0.5)(ours), ours)
    assert torch.equal(RandHistogramMatch([ours], 1.0, 1.0, above=0.5)(image(0, 1, 4, 4)), image(0, 1, 4, 4))


def test_large_references_are_thinned() -> None:
    ours, reference = image(0, 1, 20, 20), image(1, 1, 90, 90, 90).reshape(1, 900, 810) ** 2
    full = match_histograms(ours[0].numpy(), reference[0].numpy())
    matched = RandHistogramMatch([reference], 1.0, 1.0)(ours)[0]
    assert torch.allclose(matched, torch.as_tensor(full, dtype=torch.float32), atol=5e-3)
