# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Distances of histograms against SciPy, and thresholds that usual cases pass as often as they should."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from dacal_med.deploy.runtime.trust_histograms import BINS, distance, leave_one_out, p_value, shares, threshold


def test_the_distance_is_the_earth_mover_s():
    rng = np.random.default_rng(0)
    first, second = rng.dirichlet(np.ones(BINS)), rng.dirichlet(np.ones(BINS))
    centres = (np.arange(BINS) + 0.5) / BINS
    assert distance(first, second) == pytest.approx(wasserstein_distance(centres, centres, first, second), rel=1e-9)


def test_the_farthest_channel_counts():
    first, second = np.eye(BINS)[[0, 0]], np.eye(BINS)[[10, 30]]
    assert distance(first, second) == pytest.approx(30 / BINS)


def test_shares_sum_to_one_and_nothing_stays_nothing():
    assert shares([[1, 3], [0, 0]]).tolist() == [[0.25, 0.75], [0.0, 0.0]]


def test_each_case_is_compared_with_the_others():
    cases = np.eye(BINS)[[0, 0, 10]]
    assert leave_one_out(cases) == pytest.approx([5 / BINS, 5 / BINS, 10 / BINS])


def test_the_threshold_is_a_conformal_quantile():
    assert threshold(list(range(1, 100)), 0.05) == 95
    # Too few cases for one in twenty: the largest.
    assert threshold([3.0, 1.0, 2.0], 0.05) == 3.0


def test_usual_cases_are_called_unusual_as_often_as_said():
    rng = np.random.default_rng(0)
    alarms = [rng.exponential() > threshold(list(rng.exponential(size=39)), 0.05) for _ in range(4000)]
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.012)


def test_the_p_value_is_the_rank():
    assert p_value(2.5, [1.0, 2.0, 3.0]) == pytest.approx(0.5)
    assert p_value(9.0, [1.0, 2.0, 3.0]) == pytest.approx(0.25)
