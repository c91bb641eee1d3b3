# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Learning rates against their formula."""

from __future__ import annotations

import pytest
import torch

from dacal_med.engines import warmup_polynomial
from dacal_med.io.errors import InputError


def optimizer():
    return torch.optim.AdamW([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (6e-5, 6e-4)])


@pytest.mark.parametrize(("total", "warmup", "factor", "power"), [(40, 15, 1e-6, 1.0), (30, 1, 0.1, 0.9)])
def test_warm_up_times_decay(total, warmup, factor, power):
    steps = optimizer()
    schedule = warmup_polynomial(steps, total, warmup, factor, power)
    for t in range(total + 3):
        ramp = factor + (1 - factor) * min(t / warmup, 1)
        expected = ramp * max(1 - t / total, 0.0) ** power
        assert [g["lr"] for g in steps.param_groups] == pytest.approx([6e-5 * expected, 6e-4 * expected], rel=1e-6)
        steps.step()
        schedule.step()


def test_it_continues_from_its_state():
    first, second = optimizer(), optimizer()
    one, two = warmup_polynomial(first, 20, 5), warmup_polynomial(second, 20, 5)
    for _ in range(7):
        first.step()
        one.step()
    two.load_state_dict(one.state_dict())
    second.load_state_dict(first.state_dict())
    for _ in range(9):
        for steps, schedule in ((first, one), (second, two)):
            steps.step()
            schedule.step()
        assert first.param_groups[0]["lr"] == second.param_groups[0]["lr"]


def test_a_warm_up_beyond_the_run_is_refused():
    with pytest.raises(InputError, match="found 1500 for a run of 900 iterations, wanted 1 to 899"):
        warmup_polynomial(optimizer(), 900)
    with pytest.raises(InputError, match="start_factor=0"):
        warmup_polynomial(optimizer(), 9000, start_factor=0.0)
