# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Expected Dice and its intervals: exact expectations, recovered shifts, coverage under the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dacal_med.deploy.runtime.trust_effects import (
    LEVEL,
    LogitHistogram,
    Spread,
    add_voxels,
    draw_shifts,
    expected_dice,
    fit_shift,
    fit_spread,
    intervals,
)

CERTAIN = Spread(((1e-12, 0.0), (0.0, 1e-12)), 200, 0)


def pair(inside: torch.Tensor, outside: torch.Tensor) -> tuple[LogitHistogram, LogitHistogram]:
    result = (LogitHistogram(), LogitHistogram())
    mask = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))]).bool()
    add_voxels(*result, torch.cat([inside, outside]), mask)
    return result


def number_distribution(p: np.ndarray) -> np.ndarray:
    """Probabilities of 0, 1, ... successes of independent trials, by convolution."""
    result = np.ones(1)
    for value in p:
        result = np.convolve(result, [1 - value, value])
    return result


def exact_dice(inside: np.ndarray, outside: np.ndarray) -> float:
    hits, misses = number_distribution(inside), number_distribution(outside)
    i, j = np.arange(len(hits))[:, None], np.arange(len(misses))[None]
    return float((hits[:, None] * misses[None] * 2 * i / (len(inside) + i + j)).sum())


@given(st.integers(60, 150), st.integers(0, 150), st.floats(0.3, 4.0), st.integers(0, 1000))
def test_expected_dice_is_the_expectation_of_the_ratio(inside, outside, sharpness, seed):
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-np.abs(rng.normal(0, sharpness, inside))))
    q = 1 / (1 + np.exp(np.abs(rng.normal(0, sharpness, outside))))
    found = expected_dice(*pair(torch.from_numpy(p).float(), torch.from_numpy(q).float()))
    # From 100 voxels in mask and truth together on: half of the mask is true at least.
    assert found == pytest.approx(exact_dice(p, q), abs=1e-4)


def test_the_correction_takes_most_of_the_error_off_for_few_voxels():
    p, q = np.array([0.6, 0.7, 0.9, 0.8] * 3), np.array([0.3, 0.1] * 3)
    plain = 2 * p.sum() / (len(p) + p.sum() + q.sum())
    found = expected_dice(*pair(torch.from_numpy(p).float(), torch.from_numpy(q).float()))
    assert abs(found - exact_dice(p, q)) < abs(plain - exact_dice(p, q)) / 5


def test_an_empty_mask_has_no_dice_but_a_volume():
    inside, outside = pair(torch.zeros(0), torch.full((100,), 0.2))
    assert expected_dice(inside, outside) is None
    dice, voxels = intervals(inside, outside, CERTAIN)
    assert dice is None
    assert voxels.low < 20 < voxels.high


@given(st.floats(-3, 3), st.floats(0.5, 5.0), st.integers(0, 100))
def test_shifted_sums_are_those_of_shifted_logits(shift, sharpness, seed):
    p = torch.sigmoid(torch.randn(5000, generator=torch.Generator().manual_seed(seed)) * sharpness)
    _, histogram = pair(torch.zeros(0), p)
    total, variance = histogram.expected(torch.tensor(shift))
    shifted = torch.sigmoid(torch.logit(p.double()) + shift)
    assert float(total) == pytest.approx(float(shifted.sum()), rel=5e-3)
    assert float(variance) == pytest.approx(float((shifted * (1 - shifted)).sum()), rel=2e-2)


def test_the_sum_without_shift_is_exact_and_certain_voxels_stay_certain():
    p = torch.cat([torch.zeros(10), torch.ones(7), torch.full((3,), 1e-9), torch.rand(1000)])
    _, histogram = pair(torch.zeros(0), p)
    assert float(histogram.total.sum()) == pytest.approx(float(p.double().sum()), rel=1e-12)
    assert histogram.voxels() == 1020
    _, certain = pair(torch.zeros(0), torch.cat([torch.zeros(10), torch.ones(7)]))
    assert float(certain.expected(torch.tensor(3.0))[0]) == 7.0


def test_shifts_of_many_values_come_at_once():
    _, histogram = pair(torch.zeros(0), torch.full((10,), 0.5))
    total, _ = histogram.expected(torch.zeros(3, 2))
    assert total.tolist() == [[5.0, 5.0]] * 3


@pytest.mark.parametrize("shift", [-2.0, -0.3, 0.0, 1.1])
def test_the_shift_of_a_case_is_found(shift):
    _, histogram = pair(torch.zeros(0), torch.sigmoid(torch.randn(20000) * 2))
    true = float(histogram.expected(torch.tensor(shift))[0])
    assert fit_shift(histogram, true) == pytest.approx(shift, abs=2e-3)


def test_the_shift_is_finite_where_all_or_none_are_true_and_none_without_voxels():
    _, histogram = pair(torch.zeros(0), torch.full((99,), 0.5))
    # Half a voxel on either side: odds of 0.5 to 99.5.
    assert fit_shift(histogram, 0) == pytest.approx(np.log(0.5 / 99.5), abs=1e-6)
    assert fit_shift(histogram, 99) == pytest.approx(np.log(99.5 / 0.5), abs=1e-6)
    assert fit_shift(LogitHistogram(), 0) is None


def test_without_cases_the_spread_is_the_assumption():
    assert fit_spread([]) == Spread(((1.0, 0.0), (0.0, 1.0)), 2, 0)


def test_the_spread_is_about_zero_and_a_case_counts_once():
    cases = [[(1.0, 0.0), (3.0, 0.0)], [(0.0, 2.0)]]
    # (1 assumed + mean square of the first case + second) / (1 + 2)
    expected = ((1 + 5) / 3, 0.0), (0.0, (1 + 4) / 3)
    spread = fit_spread(cases)
    assert np.allclose(spread.scale, expected)
    assert (spread.freedom, spread.cases) == (4, 2)


def test_draws_are_student_t_and_repeat():
    shifts = draw_shifts(Spread(((0.25, 0.1), (0.1, 0.25)), 10, 8), 20000)
    tails = torch.quantile(shifts[:, 0], torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    assert tails.tolist() == pytest.approx((0.5 * stats.t(10).ppf([0.05, 0.5, 0.95])).tolist(), abs=0.03)
    assert float(torch.corrcoef(shifts.T)[0, 1]) == pytest.approx(0.4, abs=0.05)
    assert torch.equal(shifts, draw_shifts(Spread(((0.25, 0.1), (0.1, 0.25)), 10, 8), 20000))


@pytest.mark.parametrize("deviation", [0.0, 0.6])
def test_intervals_hold_the_truth_as_often_as_they_say(deviation):
    rng = np.random.default_rng(1)
    p, q = torch.sigmoid(torch.randn(3000).abs() * 2), torch.sigmoid(-torch.randn(6000).abs() * 2)
    inside, outside = pair(p, q)
    spread = Spread(((max(deviation**2, 1e-12), 0.0), (0.0, max(deviation**2, 1e-12))), 200, 50)
    dice, voxels = intervals(inside, outside, spread)
    held = []
    for _ in range(500):
        a, d = rng.normal(0, deviation, 2) if deviation else (0.0, 0.0)
        hit = float((torch.rand(3000) < torch.sigmoid(torch.logit(p) + a)).sum())
        missed = float((torch.rand(6000) < torch.sigmoid(torch.logit(q) + d)).sum())
        held.append(
            (dice.low <= 2 * hit / (3000 + hit + missed) <= dice.high, voxels.low <= hit + missed <= voxels.high)
        )
    # Three standard errors of 500 cases.
    assert np.allclose(np.mean(held, axis=0), LEVEL, atol=0.04)


def test_case_level_intervals_are_wider_than_those_of_independent_voxels():
    inside, outside = pair(torch.sigmoid(torch.randn(30000).abs()), torch.sigmoid(-torch.randn(30000).abs()))
    narrow, _ = intervals(inside, outside, CERTAIN)
    wide, _ = intervals(inside, outside, fit_spread([[(0.3, -0.3)]] * 30))
    assert wide.high - wide.low > 10 * (narrow.high - narrow.low)
    assert narrow.low <= expected_dice(inside, outside) <= narrow.high
