# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The teacher: an exponential moving average of the student (Mean Teacher, Tarvainen & Valpola, arXiv 1703.01780)."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Teacher:
    """Holds the averaged copy of a network and moves it towards the student after each update.

    Ignite's ``EMAHandler`` aliases the student's buffers when it copies them, so the average is kept here.

    Args:
        student: the network that is trained.
        decay: share of the old average that stays, in ``[0, 1)``; early updates use ``min(decay, 1 - 1 / (n + 1))``
            so that the random initial weights are forgotten at once (DACS).

    Raises:
        ValueError: if ``decay`` is outside ``[0, 1)``.
    """

    def __init__(self, student: nn.Module, decay: float = 0.99) -> None:
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay: found {decay}, wanted a number in [0, 1)")
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(student)
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.network.eval()

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Average ``student`` in; floating-point buffers (batch-norm statistics) and counters are copied."""
        self.updates += 1
        decay = min(self.decay, 1.0 - 1.0 / self.updates)
        ours = [p.data for p in self.network.parameters()]
        theirs = [p.data for p in student.parameters()]
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)
        for mine, other in zip(self.network.buffers(), student.buffers(), strict=True):
            mine.copy_(other)

    def state_dict(self) -> dict[str, object]:
        """Return weights and the number of updates, for a checkpoint."""
        return {"network": self.network.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.network.load_state_dict(state["network"])  # type: ignore[arg-type]
        self.updates = int(state["updates"])  # type: ignore[call-overload]
