# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Learning rates over a run."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, PolynomialLR

from dacal_med.io.errors import InputError


def warmup_polynomial(
    optimizer: Optimizer,
    total_iters: int,
    warmup_iters: int = 1500,
    start_factor: float = 1e-6,
    power: float = 1.0,
) -> ChainedScheduler:
    r"""Return DAFormer's schedule (arXiv 2111.14887): linear warm-up times polynomial decay.

    At iteration ``t`` the rate is the optimizer's times
    :math:`(f + (1 - f) \min(t / t_w, 1)) \cdot (1 - t / t_{total})^p`.

    Args:
        optimizer: whose rates are scheduled, each group's alike.
        total_iters: iterations of the run, where the rate is 0.
        warmup_iters: iterations of the warm-up, from 1 to below ``total_iters``.
        start_factor: share of the rate at the first iteration, in ``(0, 1]``.
        power: of the decay.

    Returns:
        A scheduler to be stepped after every iteration.

    Raises:
        InputError: if the warm-up does not fit into the run or a number is out of range.
    """
    if not 1 <= warmup_iters < total_iters:
        raise InputError(
            f"lr_scheduler#warmup_iters: found {warmup_iters} for a run of {total_iters} iterations, "
            f"wanted 1 to {total_iters - 1}"
        )
    if not 0.0 < start_factor <= 1.0 or not power > 0.0:
        raise InputError(
            f"lr_scheduler: found start_factor={start_factor}, power={power}, wanted (0, 1] and a positive number"
        )
    return ChainedScheduler(
        [
            LinearLR(optimizer, start_factor=start_factor, total_iters=warmup_iters),
            PolynomialLR(optimizer, total_iters=total_iters, power=power),
        ]
    )
