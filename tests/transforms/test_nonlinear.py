# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Curves: their ends, their order, and what they leave alone."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from dacal_med.transforms.nonlinear import RandNonlinearIntensity

RAMP = torch.linspace(0, 1, 501)[None]


@pytest.mark.parametrize("seed", range(20))
def test_bezier_rises_from_zero_to_one(seed: int) -> None:
    curve = RandNonlinearIntensity(1.0).set_random_state(seed)(RAMP)[0]
    assert bool((curve.diff() >= -1e-6).all())
    assert [float(curve[0]), float(curve[-1])] == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("seed", range(10))
def test_inverted_bezier_is_its_complement(seed: int) -> None:
    rising = RandNonlinearIntensity(1.0, invert_prob=0.0).set_random_state(seed)(RAMP)
    falling = RandNonlinearIntensity(1.0, invert_prob=1.0).set_random_state(seed)(RAMP)
    assert torch.allclose(rising + falling, torch.ones_like(RAMP), atol=1e-6)


def test_bezier_is_the_cubic_through_its_control_points() -> None:
    """Points drawn as in the transform, the curve written out as in de Casteljau's construction."""
    transform = RandNonlinearIntensity(1.0).set_random_state(7)
    changed = transform(RAMP)[0].double().numpy()
    state = np.random.RandomState(7)
    state.rand()  # whether to act
    x = [0.0, *np.sort(state.uniform(0, 1, 2)), 1.0]
    y = [0.0, *np.sort(state.uniform(0, 1, 2)), 1.0]

    def casteljau(points: list[float], t: np.ndarray) -> np.ndarray:
        level = [np.full_like(t, p) for p in points]
        while len(level) > 1:
            level = [(1 - t) * a + t * b for a, b in pairwise(level)]
        return level[0]

    t = np.linspace(0, 1, 20001)
    assert changed == pytest.approx(np.interp(RAMP[0].numpy(), casteljau(x, t), casteljau(y, t)), abs=2e-3)


def test_piecewise_curves_change_the_order() -> None:
    orders = [
        bool((RandNonlinearIntensity(1.0, curve="piecewise").set_random_state(s)(RAMP)[0].diff() >= 0).all())
        for s in range(20)
    ]
    assert sum(orders) <= 2


def test_piecewise_curve_is_linear_between_its_knots() -> None:
    transform = RandNonlinearIntensity(1.0, curve="piecewise", num_control_points=3).set_random_state(2)
    curve = transform(torch.tensor([[0.0, 0.25, 0.5, 0.75, 1.0]]))[0]
    assert float(curve[1]) == pytest.approx(float(curve[0] + curve[2]) / 2, abs=1e-6)
    assert float(curve[3]) == pytest.approx(float(curve[2] + curve[4]) / 2, abs=1e-6)


def test_background_may_stay() -> None:
    image = torch.tensor([[0.0, 0.0, 0.3, 1.0]])
    for seed in range(5):
        kept = RandNonlinearIntensity(1.0, invert_prob=1.0, keep_zero=True).set_random_state(seed)(image)
        assert kept[0, :2].tolist() == [0.0, 0.0]
        assert float(kept[0, 2]) > float(kept[0, 3])


@pytest.mark.parametrize(
    "wrong",
    [{"curve": "spline"}, {"invert_prob": 2.0}, {"num_control_points": 1}, {"num_control_points": (5, 3)}],
)
def test_wrong_arguments(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RandNonlinearIntensity(**wrong)
