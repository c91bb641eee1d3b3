# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Is a new image like those that the network was adapted to? Distances of histograms, without labels.

The distance of two histograms is the earth mover's on the line: the area between their distribution functions, at most
the width of the scale (1). The reference cases themselves say what is usual: each one's distance to the mean of the
others. A new case that is farther from the mean of all than nearly all of them is called out of distribution; the rank
among them is a conformal p-value (Vovk, Gammerman & Shafer, Algorithmic Learning in a Random World, 2005; Bates et al.,
Testing for outliers with conformal p-values, Annals of Statistics 51, 2023).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

BINS = 50
"""Bins of equal width on [0, 1], to which intensities are brought before the network and where confidences lie; what is
beyond goes into the first or last."""

FALSE_ALARMS = 0.05
"""Share of usual cases that may be called unusual by each test, as far as the number of reference cases allows."""

Histogram = npt.NDArray[np.float64]


def shares(counts: Sequence[float] | Histogram) -> Histogram:
    """Return a histogram whose last axis sums to 1; zeros stay zeros."""
    values = np.asarray(counts, dtype=np.float64)
    total = values.sum(axis=-1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def distance(first: Histogram, second: Histogram) -> float:
    """Return the earth mover's distance of two histograms on [0, 1].

    Args:
        first: ``(bins,)`` or ``(channels, bins)`` shares.
        second: the same.

    Returns:
        The area between the distribution functions, in [0, 1]; with channels that of the farthest channel.
    """
    gap = np.abs(np.cumsum(first - second, axis=-1))[..., :-1]
    return float(np.max(gap.sum(axis=-1) / first.shape[-1]))


def leave_one_out(cases: Histogram) -> list[float]:
    """Return each case's distance to the mean of the other cases.

    Args:
        cases: ``(cases, ..., bins)`` shares, at least two cases.
    """
    total = cases.sum(axis=0)
    return [distance(case, (total - case) / (len(cases) - 1)) for case in cases]


def threshold(distances: Sequence[float], false_alarms: float = FALSE_ALARMS) -> float:
    """Return the distance beyond which a case is called out of distribution.

    Args:
        distances: of the reference cases, each to the others.
        false_alarms: share of usual cases that may lie beyond it.

    Returns:
        The ``ceil((n + 1) (1 - false_alarms))``-th smallest distance; the largest where there are too few cases for
        that, and then usual cases lie beyond it with probability ``1 / (n + 1)``.
    """
    ordered = sorted(distances)
    rank = math.ceil((len(ordered) + 1) * (1 - false_alarms))
    return ordered[min(rank, len(ordered)) - 1]


def p_value(value: float, distances: Sequence[float]) -> float:
    """Return the conformal p-value: how probable a distance this large is for a case like the reference cases."""
    return (1 + sum(d >= value for d in distances)) / (len(distances) + 1)
