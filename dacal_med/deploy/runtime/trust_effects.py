# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Expected Dice and volume of a predicted mask, with intervals that allow for whole cases being misjudged.

If the probabilities ``p_v`` of a class are calibrated, its true positives in the mask ``M`` and its missed voxels
outside have the expectations ``TP = sum_M p_v`` and ``FN = sum_notM p_v``, and Dice is about
``2 TP / (|M| + TP + FN)``: the Soft Dice Confidence of Borges, Pacheco & Silva (arXiv 2402.10665); Li et al. (MICCAI
2022, arXiv 2207.09957) estimate Dice from calibrated confidences alike. See :func:`expected_dice` for the error of that
ratio of expectations.

Errors of neighbouring voxels go together, so that counting voxels as independent gives intervals far too narrow. What
varies is how well a network judges a *case*: every logit of the class is wrong by the same unknown amount, ``a`` inside
the mask and ``d`` outside, ``logit q_v = logit p_v + a`` or ``+ d`` (two random intercepts: ``a`` moves precision,
``d`` moves recall). ``(a, d)`` of a labelled case is where the expected count is the true one (:func:`fit_shift`, the
maximum likelihood of a logistic regression with offset); their spread over held-out cases is that of a new case.

A class is kept as two histograms over the logit, inside and outside the mask, so that memory does not grow with the
image and any shift can be applied afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LEVEL = 0.9
"""Nominal coverage of every interval."""

PRIOR_DEVIATION = 1.0
"""Deviation of a case's shift assumed before any labelled case is seen: odds wrong by a factor of e. Not measured."""

PRIOR_WEIGHT = 1.0
"""How many labelled cases that assumption counts for."""

MAX_LOGIT = 14.0
LOGIT_BINS = 112
DRAWS = 4096
_MAX_SHIFT = 12.0
_CHUNK = 1 << 18  # voxels per step: bounds the copies


class LogitHistogram:
    """How many voxels have which probability of a class: 112 bins of 0.25 on the logit scale from -14 to 14.

    A bin keeps the sum of its probabilities, so that the sum over all voxels is exact; a shift is applied to the mean
    of each bin, which is off by a few thousandths of the sum at most.

    Attributes:
        count: ``(bins,)`` float64 voxels.
        total: ``(bins,)`` float64 sums of probabilities.
    """

    def __init__(self) -> None:
        self.count = torch.zeros(LOGIT_BINS, dtype=torch.float64)
        self.total = torch.zeros(LOGIT_BINS, dtype=torch.float64)

    def voxels(self) -> float:
        """Return the number of voxels."""
        return float(self.count.sum())

    def expected(self, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Return the expected number of voxels of the class, and its variance for independent voxels.

        Args:
            shift: what is added to every logit, any shape.

        Returns:
            Two tensors of the shape of ``shift``, float64.
        """
        filled = self.count > 0
        count = self.count[filled]
        mean = (self.total[filled] / count).clamp(0.0, 1.0)
        shifted = torch.sigmoid(torch.logit(mean) + shift.double().unsqueeze(-1))
        return (count * shifted).sum(-1), (count * shifted * (1 - shifted)).sum(-1)


def add_voxels(inside: LogitHistogram, outside: LogitHistogram, probabilities: Tensor, mask: Tensor) -> None:
    """Add voxels of a class to the histogram inside or outside the mask.

    Args:
        inside: gets those in the mask.
        outside: gets the others.
        probabilities: of the class, ``(voxels,)``.
        mask: bool ``(voxels,)``, where the class is predicted.
    """
    width = 2 * MAX_LOGIT / LOGIT_BINS
    for values, chosen in zip(probabilities.split(_CHUNK), mask.split(_CHUNK), strict=True):
        # Probabilities 0 and 1 have infinite logits, which the bounds of the bins hold back.
        index = torch.logit(values.float()).add_(MAX_LOGIT).div_(width).clamp_(0, LOGIT_BINS - 1).int()
        index += chosen.int() * LOGIT_BINS
        count = torch.bincount(index, minlength=2 * LOGIT_BINS).double().cpu()
        total = torch.bincount(index, weights=values.double(), minlength=2 * LOGIT_BINS).cpu()
        for part, histogram in enumerate((outside, inside)):
            rows = slice(part * LOGIT_BINS, (part + 1) * LOGIT_BINS)
            histogram.count += count[rows]
            histogram.total += total[rows]


def fit_shift(histogram: LogitHistogram, true_voxels: float) -> float | None:
    """Return the shift of every logit at which the expected number of voxels is the true one.

    Half a voxel is given to either side (Haldane and Anscombe), so that the shift is finite where all or none are true.

    Args:
        histogram: of a class inside or outside a mask.
        true_voxels: how many of its voxels are of the class.

    Returns:
        The shift, within -12 and 12; ``None`` without voxels.
    """
    count = histogram.voxels()
    if count == 0:
        return None
    wanted = count * (true_voxels + 0.5) / (count + 1.0)
    low, high = -_MAX_SHIFT, _MAX_SHIFT
    for _ in range(60):
        middle = (low + high) / 2
        if float(histogram.expected(torch.tensor(middle))[0]) < wanted:
            low = middle
        else:
            high = middle
    return (low + high) / 2


class Spread(NamedTuple):
    """How the shifts ``(a, d)`` of a new case vary: a bivariate Student t around 0.

    Attributes:
        scale: ``(2, 2)`` scale matrix, as nested tuples.
        freedom: its degrees of freedom.
        cases: labelled cases it was fitted on, 0 for the assumed one.
    """

    scale: tuple[tuple[float, float], tuple[float, float]]
    freedom: int
    cases: int


def fit_spread(shifts: Sequence[Sequence[tuple[float, float]]]) -> Spread:
    """Fit the spread of shifts around 0.

    Around 0 and not around their mean: that the probabilities are right on average is the premise of the estimates, so
    that a common error of the labelled cases counts as uncertainty and is not corrected.

    Args:
        shifts: by labelled case one or several ``(a, d)``, e.g. of its image in several appearances; a case counts
            once.

    Returns:
        The posterior predictive of a normal distribution with mean 0 under a prior worth :data:`PRIOR_WEIGHT` cases of
        deviation :data:`PRIOR_DEVIATION`; without cases that of the prior alone.
    """
    moment = torch.eye(2, dtype=torch.float64) * PRIOR_DEVIATION**2 * PRIOR_WEIGHT
    for case in shifts:
        values = torch.tensor(case, dtype=torch.float64)
        moment += values.T @ values / len(case)
    scale = moment / (PRIOR_WEIGHT + len(shifts))
    (aa, ad), (da, dd) = scale.tolist()
    return Spread(((aa, ad), (da, dd)), len(shifts) + 2, len(shifts))


def draw_shifts(spread: Spread, draws: int = DRAWS) -> Tensor:
    """Return ``(draws, 2)`` shifts of new cases, always the same ones for the same spread."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(draws, 2, generator=generator, dtype=torch.float64)
    # Beyond 200 degrees of freedom it is the normal distribution to three digits.
    freedom = min(spread.freedom, 200)
    chi2 = torch.randn(draws, freedom, generator=generator, dtype=torch.float64).square().sum(1, keepdim=True)
    factor = torch.linalg.cholesky(torch.tensor(spread.scale, dtype=torch.float64))
    shifts = normal @ factor.T / (chi2 / freedom).sqrt()
    return shifts.clamp(-_MAX_SHIFT, _MAX_SHIFT)


def expected_dice(inside: LogitHistogram, outside: LogitHistogram) -> float | None:
    """Return the expected Dice of a predicted mask under calibrated, independent voxels.

    With ``m = |M|``, ``N`` true positives and ``F`` misses (independent, means ``n, f``, variances ``s, t``) and
    ``D = m + n + f``, the second-order expansion of ``2N / (m + N + F)`` around the means gives
    ``2n/D + (2 n t - 2 (m + f) s) / D^3 + ... = 2n/D + O(1/D)``, since a variance is at most a quarter of the number of
    voxels. The correction is added; what is left is ``O(1/D^2)``, below 1e-4 from 100 voxels on.

    Args:
        inside: probabilities of the class in the mask.
        outside: those of the other voxels.

    Returns:
        The expectation; ``None`` if the mask is empty, where Dice is 0 or undefined.
    """
    size = inside.voxels()
    if size == 0:
        return None
    zero = torch.zeros(())
    (hit, hit_variance), (missed, missed_variance) = inside.expected(zero), outside.expected(zero)
    whole = size + hit + missed
    correction = (2 * hit * missed_variance - 2 * (size + missed) * hit_variance) / whole**3
    return min(1.0, max(0.0, float(2 * hit / whole + correction)))


class Interval(NamedTuple):
    """Bounds, each exceeded with half of what is left of :data:`LEVEL`."""

    low: float
    high: float


def intervals(inside: LogitHistogram, outside: LogitHistogram, spread: Spread) -> tuple[Interval | None, Interval]:
    """Return the intervals of Dice and of the number of voxels of the class.

    Drawn: the shifts of a case, then the counts given the shifts, normal with their variance for independent voxels.

    Args:
        inside: probabilities of the class in the mask.
        outside: those of the other voxels.
        spread: of the shifts.

    Returns:
        ``(dice, voxels)``; Dice ``None`` if the mask is empty. Both hold the value at shift 0.
    """
    shifts = draw_shifts(spread)
    noise = torch.randn(shifts.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    size, others = inside.voxels(), outside.voxels()
    hit, hit_variance = inside.expected(shifts[:, 0])
    missed, missed_variance = outside.expected(shifts[:, 1])
    hit = (hit + noise[:, 0] * hit_variance.sqrt()).clamp(0.0, size)
    missed = (missed + noise[:, 1] * missed_variance.sqrt()).clamp(0.0, others)
    centre = float(inside.total.sum() + outside.total.sum())
    voxels = _quantiles(hit + missed, centre)
    point = expected_dice(inside, outside)
    if point is None:
        return None, voxels
    return _quantiles(2 * hit / (size + hit + missed), point), voxels


def _quantiles(values: Tensor, centre: float) -> Interval:
    tail = (1 - LEVEL) / 2
    low, high = torch.quantile(values, torch.tensor([tail, 1 - tail], dtype=values.dtype)).tolist()
    assert not math.isnan(low) and not math.isnan(high)
    return Interval(min(low, centre), max(high, centre))
