# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Bins of the probability by its leading bits, and average precision from them against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dacal_med.core.ranking import RANK_BINS, average_precision, rank_bin


def binned(p: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts and positives ``(1, bins)`` of one class."""
    index = rank_bin(p)
    return tuple(torch.bincount(index[kept], minlength=RANK_BINS)[None] for kept in (truth >= 0, truth == 1))


def scored(seed: int, voxels: int, sharpness: float, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities that know something of a class of which ``share`` of the voxels are."""
    g = torch.Generator().manual_seed(seed)
    truth = (torch.rand(voxels, generator=g) < share).long()
    logits = torch.randn(voxels, generator=g, dtype=torch.float64) + 1.5 * truth - 1
    return (sharpness * logits).sigmoid(), truth


# Bins


def test_bins_by_hand():
    for low, high, bins in ((0.25, 0.5, 8), (2.0**-25, 2.0**-24, 8)):
        edges = torch.linspace(low, high, bins + 1)
        first = int(rank_bin(edges[:1]))
        assert rank_bin(edges).tolist() == list(range(first, first + bins + 1))
        below = torch.nextafter(edges, torch.tensor(0.0))
        assert rank_bin(below)[1:].tolist() == rank_bin(edges)[:-1].tolist()
    assert rank_bin(torch.tensor([0.0, -0.0, 1e-40, 2.0**-25])).tolist() == [0, 0, 0, 0]
    one, last = torch.tensor(1.0), RANK_BINS - 1
    below_one = torch.nextafter(one, torch.tensor(0.0))
    assert [int(rank_bin(p)) for p in (torch.tensor(0.5), below_one, one, one * 1.00005)] == [
        last // 2,
        *(last - 8, last, last),
    ]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bins_rise_with_the_probability_and_mirror(dtype, values):
    p = torch.tensor(sorted(values), dtype=torch.float64).to(dtype)
    bins = rank_bin(p)
    assert bins.dtype == torch.int32
    assert int(bins.min()) >= 0 and int(bins.max()) < RANK_BINS
    assert (bins.diff() >= 0).all()
    complement = 1.0 - p.float()
    exact = p.float() >= 0.5
    assert torch.equal(rank_bin(complement)[exact], (RANK_BINS - 1 - bins)[exact])


# Average precision


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999),
    voxels=st.integers(2, 3000),
    sharpness=st.sampled_from([0.02, 1.0, 5.0, 40.0]),
    share=st.sampled_from([0.01, 0.3, 0.9]),
)
def test_scikit_learn_lies_within_the_bounds(seed, voxels, sharpness, share):
    p, truth = scored(seed, voxels, sharpness, share)
    truth[0] = 1
    found = average_precision(*binned(p, truth))
    wanted = average_precision_score(truth.numpy(), p.numpy())
    assert float(found.low) - 1e-12 <= wanted <= float(found.high) + 1e-12
    assert float(found.low) <= float(found.value) <= float(found.high)


@pytest.mark.parametrize(("sharpness", "share"), [(1.0, 0.06), (3.0, 0.06), (3.0, 0.3), (10.0, 0.01)])
def test_the_value_is_that_of_scikit_learn_to_about_a_thousandth(sharpness, share):
    """Also where most voxels are confident, which equal bins of the probability would throw together."""
    p, truth = scored(1, 300_000, sharpness, share)
    p = p.float()  # as networks give them
    found = average_precision(*binned(p, truth))
    assert float(found.value) == pytest.approx(average_precision_score(truth.numpy(), p.numpy()), abs=1.5e-3)
    assert float(found.high - found.low) < 0.1


def test_one_voxel_to_a_bin_is_exact():
    p = torch.tensor([0.9, 0.8, 0.7, 0.4, 0.3, 0.2, 0.1, 0.01])
    truth = torch.tensor([1, 0, 1, 1, 0, 0, 1, 0])
    found = average_precision(*binned(p, truth))
    wanted = (1 / 1 + 2 / 3 + 3 / 4 + 4 / 7) / 4
    assert [float(x) for x in found] == pytest.approx([wanted] * 3, abs=1e-13)


def test_one_bin_by_hand():
    """Two positives and two negatives in one bin: the order decides from 5/12 to 1, mixed evenly one half."""
    p, truth = torch.full((4,), 0.61), torch.tensor([0, 1, 1, 0])
    found = average_precision(*binned(p, truth))
    assert [float(x) for x in found] == pytest.approx([0.5, (1 / 3 + 2 / 4) / 2, 1.0])


def test_mixing_evenly_by_numbers():
    """The mean precision over a second bin, against a sum over small steps through it."""
    p, truth = torch.tensor([0.9] * 5 + [0.2] * 40), torch.tensor([1, 1, 1, 0, 0] + [1] * 10 + [0] * 30)
    t = (np.arange(100_000) + 0.5) / 100_000
    second = ((3 + 10 * t) / (5 + 40 * t)).mean()
    assert float(average_precision(*binned(p, truth)).value) == pytest.approx((3 * 3 / 5 + 10 * second) / 13, abs=1e-9)


def test_classes_without_positives_are_nan_and_with_nothing_else_one():
    p = torch.tensor([0.9, 0.2, 0.4])
    none, every = (average_precision(*binned(p, torch.full((3,), label))) for label in (0, 1))
    assert all(math.isnan(float(x)) for x in none)
    assert [float(x) for x in every] == [1.0, 1.0, 1.0]
