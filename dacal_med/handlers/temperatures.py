# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Temperature maps during an evaluation: for the image panels, and to see whether they carry information."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from ignite.engine import Engine, Events

from dacal_med.core.error_ranking import ErrorRanking
from dacal_med.core.pseudo_labels import LearnedTemperature
from dacal_med.engines.evaluator import CalibrationEvaluator
from dacal_med.engines.parallel import world_size


class TemperatureMaps:
    """Adds ``temperature`` ``(1, 1, *spatial)`` to the evaluator's output, and relates it to the network's errors.

    The maps come from the pass that predicts. They are reported and used for nothing: the temperature network never
    learns from evaluation labels.

    Args:
        evaluator: whose cases are mapped, with the network that it evaluates as the teacher.
    """

    def __init__(self, evaluator: CalibrationEvaluator) -> None:
        self.evaluator = evaluator
        self.labeller: LearnedTemperature | None = None
        self._ranking: ErrorRanking | None = None
        evaluator.add_event_handler(Events.STARTED, self._start)
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._map)
        evaluator.add_event_handler(Events.EPOCH_COMPLETED, self._gather)

    def summary(self) -> dict[str, float | None] | None:
        """Return :meth:`ErrorRanking.summary` of the last evaluation, ``None`` for labellers that learn nothing."""
        return None if self._ranking is None else self._ranking.summary()

    def _start(self) -> None:
        self._ranking = None
        self.evaluator.window_map = None if self.labeller is None else self.labeller.temperature
        if self.labeller is not None:
            self._ranking = ErrorRanking(
                *self.labeller.bounds,
                ignore_index=self.evaluator.ignore_index,
                background=self.evaluator.background,
            )

    def _map(self, engine: Engine) -> None:
        if self._ranking is None:
            return
        output: Any = engine.state.output
        output["temperature"] = output["map"]
        prediction = output["probabilities"].argmax(dim=1, keepdim=True)
        if output["index"] >= 0:
            self._ranking.update(output["temperature"], prediction, output["label"])

    def _gather(self) -> None:
        if self._ranking is not None and world_size() > 1:
            for tensor in self._ranking.tensors():
                dist.all_reduce(tensor)
