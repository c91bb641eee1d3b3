# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The common bins tell the fine bin and the bin of ranking, for every number near an edge and for any other."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.core.binning import COMMON_BINS, FINE_BINS, by_fine_bin, by_rank_bin, common_bin, fine_bin
from dacal_med.core.ranking import RANK_BINS, rank_bin

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def assert_both_from_one(values: torch.Tensor) -> None:
    """The sum over the common bin of each value alone is that over its fine bin and over its bin of ranking."""
    exact = values.double()
    alone = torch.nn.functional.one_hot(common_bin(values, exact).long(), COMMON_BINS)
    assert torch.equal(by_fine_bin(alone).argmax(1), fine_bin(exact, values.dtype).long())
    assert torch.equal(by_rank_bin(alone).argmax(1), rank_bin(values).long())
    assert (by_fine_bin(alone).sum(1) == 1).all() and (by_rank_bin(alone).sum(1) == 1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_near_an_edge(dtype):
    eighths = torch.arange(8, 16, dtype=torch.float64)
    halvings = torch.cat([eighths * 2.0**-n for n in range(5, 40)])
    edges = torch.cat([halvings, 1 - halvings, torch.arange(FINE_BINS + 1).double() / FINE_BINS]).to(dtype)
    near = [edges]
    for end in (0.0, 1.0):
        step = edges
        for _ in range(3):
            step = torch.nextafter(step, torch.tensor(end, dtype=dtype))
            near.append(step)
    assert_both_from_one(torch.cat(near).clamp(0, 1))


def test_every_number_of_two_bytes():
    """All float16 and bfloat16 from 0 to 1."""
    for dtype, one in ((torch.float16, 0x3C00), (torch.bfloat16, 0x3F80)):
        values = torch.arange(one + 1, dtype=torch.int16).view(dtype)
        assert float(values[-1]) == 1.0
        assert_both_from_one(values)
        index = common_bin(values, values.double())
        assert (index.diff() >= 0).all()


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=50), dtype=st.sampled_from(DTYPES))
def test_any_number(values, dtype):
    assert_both_from_one(torch.tensor(values, dtype=torch.float64).to(dtype))


@settings(max_examples=50, deadline=None)
@given(value=st.floats(0, 1, width=32))
def test_fine_bins_in_rational_arithmetic(value):
    wanted = min(max(math.ceil(Fraction(value) * FINE_BINS) - 1, 0), FINE_BINS - 1)
    exact = torch.tensor([value], dtype=torch.float64)
    assert int(fine_bin(exact, torch.float32)) == int(fine_bin(exact, torch.float64)) == wanted


def test_sums_keep_their_type_and_leading_axes():
    sums = torch.full((2, 3, COMMON_BINS), 0.1, dtype=torch.float64)
    assert by_fine_bin(sums).shape == (2, 3, FINE_BINS) and by_rank_bin(sums).shape == (2, 3, RANK_BINS)
    counts = torch.full((COMMON_BINS,), 2**53 + 1)
    assert by_fine_bin(counts).dtype == torch.int64
    assert int(by_fine_bin(counts).sum()) == COMMON_BINS * (2**53 + 1)
