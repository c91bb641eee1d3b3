# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The compiled sums against those of PyTorch's operations, for every layout, type and number near an edge."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.core import voxel_sums as module
from dacal_med.core.binning import COMMON_BINS, FINE_BINS
from dacal_med.core.compiled import _BLOCK
from dacal_med.core.voxel_sums import VoxelSums, voxel_sums

DTYPES = [torch.float16, torch.bfloat16, torch.float32]


def problem(seed: int, classes: int, voxels: int, dtype=torch.float32):
    g = torch.Generator().manual_seed(seed)
    p = (4 * torch.randn(classes, voxels, generator=g, dtype=torch.float64)).softmax(0).to(dtype)
    truth = torch.randint(0, classes, (voxels,), generator=g, dtype=torch.int32)
    return p, truth, torch.rand(voxels, generator=g) < 0.3


def by_operations(p, truth, near, background) -> VoxelSums:
    return module._by_operations(p, truth, near, background)


def assert_same(found: VoxelSums, wanted: VoxelSums) -> None:
    for name, mine, theirs in zip(VoxelSums._fields, found, wanted, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape, name
        if mine.dtype == torch.int64:
            assert torch.equal(mine, theirs), name
        else:  # the same numbers in another order
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12, msg=name)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    classes=st.integers(2, 6),
    voxels=st.integers(1, 40),
    background=st.sampled_from([0, 1, None]),
    dtype=st.sampled_from(DTYPES),
)
def test_both_ways_give_the_same(seed, classes, voxels, background, dtype):
    batch = problem(seed, classes, voxels, dtype)
    assert_same(voxel_sums(*batch, background), by_operations(*batch, background))


@pytest.mark.parametrize("voxels", [1, 3, 4, _BLOCK - 1, _BLOCK, _BLOCK + 1, 3 * _BLOCK + 5])
def test_blocks_lose_and_double_nothing(voxels):
    batch = problem(1, 5, voxels)
    found = voxel_sums(*batch, 0)
    assert_same(found, by_operations(*batch, 0))
    assert int(found.confusion.sum()) == int(found.voxel_count.sum()) == voxels
    assert found.class_count.sum(1).tolist() == [voxels] * 5


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_and_other_layouts(dtype):
    """A part of an image, whose classes lie apart; every second voxel; classes last."""
    p, truth, near = problem(2, 4, 300, dtype)
    wanted = by_operations(p[:, 50:99].contiguous(), truth[50:99], near[50:99], 0)
    assert_same(voxel_sums(p[:, 50:99], truth[50:99], near[50:99], 0), wanted)
    assert_same(voxel_sums(p.t().contiguous().t()[:, 50:99], truth[50:99], near[50:99], 0), wanted)
    wide = p.repeat_interleave(2, dim=1)
    two = [tensor.repeat_interleave(2) for tensor in (truth, near)]
    assert_same(voxel_sums(wide[:, 100:198:2], *(tensor[100:198:2] for tensor in two), 0), wanted)


def test_sums_of_parts_add_up():
    p, truth, near = problem(6, 3, 500)
    total = voxel_sums(p[:, :123], truth[:123], near[:123], 0)
    total.add(voxel_sums(p[:, 123:], truth[123:], near[123:], 0))
    assert_same(total, by_operations(p, truth, near, 0))


def test_ties_go_to_the_first_class():
    p = torch.tensor([[0.25, 0.5, 0.0], [0.5, 0.0, 0.5], [0.25, 0.5, 0.5]])
    found = voxel_sums(p, torch.zeros(3, dtype=torch.int32), torch.zeros(3, dtype=torch.bool), 0)
    assert found.confusion.tolist() == [[1, 2, 0], [0, 0, 0], [0, 0, 0]]


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.floats(0, 1 + 2**-14, width=32), min_size=1, max_size=40), dtype=st.sampled_from(DTYPES))
def test_bins_of_any_number(values, dtype):
    """Up to a little above 1, as rounding makes it."""
    first = torch.tensor(values, dtype=torch.float64).to(dtype)
    p = torch.stack([first, (1 - first.double()).clamp_min(0).to(dtype)])
    batch = p, torch.zeros(len(values), dtype=torch.int32), torch.ones(len(values), dtype=torch.bool)
    assert_same(voxel_sums(*batch, None), by_operations(*batch, None))


def test_every_number_near_an_edge():
    eighths = torch.arange(8, 16, dtype=torch.float64)
    halvings = torch.cat([eighths * 2.0**-n for n in range(5, 40)])
    edges = torch.cat([halvings, 1 - halvings, torch.arange(FINE_BINS + 1).double() / FINE_BINS]).float()
    near = [edges, *(torch.nextafter(edges, torch.tensor(end)) for end in (0.0, 1.0))]
    first = torch.cat(near).clamp(0, 1)
    voxels = len(first)
    batch = torch.stack([first, 1 - first]), torch.ones(voxels, dtype=torch.int32), torch.zeros(voxels).bool()
    found = voxel_sums(*batch, 0)
    assert found.class_count.shape == (2, COMMON_BINS)
    assert_same(found, by_operations(*batch, 0))


def test_what_is_computed_by_operations(monkeypatch):
    """float64, whose products with the number of bins are not exact in it."""
    asked: list[torch.dtype] = []
    before = module._by_operations

    def spy(p, truth, near, background):
        asked.append(p.dtype)
        return before(p, truth, near, background)

    monkeypatch.setattr(module, "_by_operations", spy)
    for dtype in (torch.float32, torch.float64, torch.float16):
        voxel_sums(*problem(3, 2, 5, dtype), 0)
    assert asked == [torch.float64]


def test_probabilities_that_have_a_gradient():
    p, truth, near = problem(4, 3, 20)
    assert_same(voxel_sums(p.requires_grad_(), truth, near, 0), by_operations(p.detach(), truth, near, 0))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0.5, math.nan), "found values from nan"),
        ((-0.25, 1.25), "found values from -0.25 to 1.25"),
        ((-(2.0**-10), 1.0), "found values from -0.0009"),
        ((1.125, 0.0), "found values from 0.0 to 1.125"),
        ((0.25, 0.25), "sums over classes off by 0.5"),
        ((math.inf, 0.0), "found values from 0.0 to inf"),
    ],
)
def test_one_voxel_that_is_no_probability(dtype, values, message):
    p, truth, near = problem(5, 2, 9, dtype)
    for place in (0, 8):
        bad = p.clone()
        bad[:, place] = torch.tensor(values, dtype=dtype)
        with pytest.raises(ValueError, match=message):
            voxel_sums(bad, truth, near, 0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_a_zero_with_a_sign_is_a_probability(dtype):
    p, truth, near = problem(5, 2, 9, dtype)
    p[:, 3] = torch.tensor([0.0, 1.0])
    signed = p.clone()
    signed[0, 3] = -0.0
    assert_same(voxel_sums(signed, truth, near, 0), voxel_sums(p, truth, near, 0))
