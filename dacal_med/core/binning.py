# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Bins of probabilities: 30 of equal width, and a finer common binning of these and of the bins of ranking.

Both bins of a number never fall when it rises, so that their sum tells both: one histogram over the common bins serves
the two.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dacal_med.core.ranking import RANK_BINS, rank_bin

FINE_BINS = 30
"""Bins of width 1/30, ``(lo, hi]``, 0 in the first; 10 and 15 equal-width bins are exact sums of them."""
COMMON_BINS = RANK_BINS + FINE_BINS - 1
"""Bins of :func:`common_bin`; where both change at once, one stays empty."""


def fine_bin(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the bin ``(k/30, (k+1)/30]`` of each value in ``[0, 1]``, exactly.

    Args:
        exact: any shape, float64.
        dtype: floating-point type that holds these values, too.

    Returns:
        int32, ``0`` to ``FINE_BINS - 1``.
    """
    if dtype == torch.float64:
        edges = torch.arange(1, FINE_BINS, dtype=torch.float64, device=exact.device) / FINE_BINS
        return torch.bucketize(exact, edges, out_int32=True)
    # Products of 24-bit numbers with 30 are exact in float64.
    return (exact * FINE_BINS).ceil_().int().sub_(1).clamp_(0, FINE_BINS - 1)


def common_bin(values: Tensor, exact: Tensor) -> Tensor:
    """Return the bin that determines both :func:`fine_bin` and :func:`~dacal_med.core.ranking.rank_bin`.

    Args:
        values: any shape and floating-point type, in ``[0, 1]``.
        exact: the same in float64.

    Returns:
        int32, ``0`` to ``COMMON_BINS - 1``.
    """
    return rank_bin(values).add_(fine_bin(exact, values.dtype))


def _tables() -> tuple[Tensor, Tensor]:
    """Return the fine and the rank bin of each common bin, from the numbers around each edge."""
    mantissas = torch.arange(8, 16)  # the leading bits of a number: 8 bins to every halving
    lower = torch.cat([mantissas * 2.0**-n for n in range(5, 30)])
    edges = torch.cat([lower.double(), 1 - lower.double(), torch.arange(FINE_BINS + 1).double() / FINE_BINS])
    fine, rank = torch.zeros(COMMON_BINS, dtype=torch.int64), torch.zeros(COMMON_BINS, dtype=torch.int64)
    for dtype in (torch.float32, torch.float64):
        at = edges.to(dtype)
        values = torch.cat([at, *(at.nextafter(torch.tensor(end, dtype=dtype)) for end in (0.0, 1.0))])
        index = common_bin(values, values.double()).long()
        fine[index], rank[index] = fine_bin(values.double(), dtype).long(), rank_bin(values).long()
    return fine, rank


_FINE, _RANK = _tables()


def by_fine_bin(common: Tensor) -> Tensor:
    """Return sums ``(..., COMMON_BINS)`` as sums ``(..., FINE_BINS)``."""
    return _gather_bins(common, _FINE, FINE_BINS)


def by_rank_bin(common: Tensor) -> Tensor:
    """Return sums ``(..., COMMON_BINS)`` as sums ``(..., RANK_BINS)``."""
    return _gather_bins(common, _RANK, RANK_BINS)


def _gather_bins(common: Tensor, table: Tensor, bins: int) -> Tensor:
    return common.new_zeros(*common.shape[:-1], bins).index_add_(-1, table.to(common.device), common)
