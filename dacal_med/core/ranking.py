# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
r"""Average precision from counts in bins of the probability, with what the bins can hide.

Bins follow the odds: 8 to every halving of the probability below 1/2, and of its complement above, down to
:math:`2^{-25}`, so that the confident voxels, of which most images consist, keep their order. They are the leading
bits of the number in float32, hence exact and cheap.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MANTISSA_BITS = 3  # bins to every halving: 2^3
_HALVINGS = 25  # a number below 1 is at most 1 - 2^-24 in float32: 1 has a bin of its own
RANK_SHIFT = 23 - _MANTISSA_BITS
"""Bits of a float32 below those that tell the bin."""
LOWEST, HALF = ((127 - n) << _MANTISSA_BITS for n in (_HALVINGS, 1))  # 127 is the bias of float32's exponent
RANK_BINS = 2 * (HALF - LOWEST) + 1
"""Number of bins; a larger probability is in the same or in a later one."""


def rank_bin(values: Tensor) -> Tensor:
    """Return the bin of each probability.

    Args:
        values: any shape and floating-point type, in ``[0, 1]``; rounded to float32 first.

    Returns:
        int32, ``0`` to ``RANK_BINS - 1``.
    """
    values = values.float()
    # Of the two, one is at 1/2; float32 holds the complement of any number from 1/2 to 1 exactly.
    lower, upper = ((x.view(torch.int32) >> RANK_SHIFT).clamp_(LOWEST, HALF) for x in (values, 1.0 - values))
    return lower.sub_(upper).add_(HALF - LOWEST)


class AveragePrecision(NamedTuple):
    """Average precisions ``(C,)`` float64; NaN for classes without positives.

    Attributes:
        value: positives and negatives of a bin mixed evenly.
        low: the least that any order within the bins gives.
        high: at least the most that any order gives, ties included.
    """

    value: Tensor
    low: Tensor
    high: Tensor


def average_precision(count: Tensor, positive: Tensor) -> AveragePrecision:
    r"""Return the average precision :math:`\sum_n (R_n - R_{n-1}) P_n` over falling thresholds.

    scikit-learn's ``average_precision_score`` of the probabilities themselves lies between ``low`` and ``high``.

    Args:
        count: ``(C, bins)`` voxels by class and bin of the class's probability, bins rising.
        positive: ``(C, bins)``, those of that class.
    """
    n, p = (sums.flip(1).double().cpu() for sums in (count, positive))
    total = p.sum(1, keepdim=True)
    hits, above = p.cumsum(1) - p, n.cumsum(1) - n  # before the bin: true positives, and all
    misses = above - hits
    # Mixed evenly, precision goes from hits / above to (hits + p) / (above + n); its mean over the bin:
    weight = torch.where(above > 0, above / n * (n / above).log1p(), 0.0)
    within = p / n
    mixed = within + torch.where(above > 0, hits / above - within, 0.0) * weight
    # Negatives first, then the positives one by one: a sum of (hits + i) / (hits + i + wrong) over i = 1 ... p.
    wrong = misses + n - p
    low = p - wrong * (torch.digamma(hits + p + wrong + 1) - torch.digamma(hits + wrong + 1))
    # Positives first and tied: each has the best precision of the bin.
    high = p * (hits + p) / (hits + p + misses)
    filled = p > 0
    low, high, value = (torch.where(filled, part, 0.0) for part in (low.minimum(high), high, p * mixed))
    value = value.clamp(low, high)
    return AveragePrecision(*((part / total).sum(1) for part in (value, low, high)))
