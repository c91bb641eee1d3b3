# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Before and after: evaluates the deployed network at the end of warm-up and training, and writes what users read."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Events
from torch import nn

from dacal_med.core.scores import reliability_table
from dacal_med.engines.parallel import is_main
from dacal_med.handlers.evaluation import (
    CASES,
    PICTURE,
    SUMS,
    EvaluationReport,
    save_figure,
    table_as_lists,
    table_from_lists,
)
from dacal_med.handlers.tensorboard import TensorBoardCalibration
from dacal_med.handlers.weights import save_weights
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json
from dacal_med.reporting.reliability import reliability_overlay
from dacal_med.reporting.tables import score_table

if TYPE_CHECKING:
    from dacal_med.engines.trainer import AdaptationTrainer

logger = logging.getLogger(__name__)

MOMENTS = ("before", "after")
NOT_MEASURED = "no labelled target cases in target_val: nothing was measured"


class AdaptationReport:
    """Measures the deployed network before and after adaptation.

    Writes ``metrics.json`` (``{"before": S, "after": S, "seconds", "peak_memory_mib",
    "skipped": {...}}``), ``cases.csv``,
    ``statistics.pt``, ``reliability.png`` and TensorBoard events into ``output_dir``, the deployed weights to
    ``model_file``, and prints a table. Nothing is selected by what it measures: the deployed network is the last one.

    Args:
        evaluation: measures on labelled target cases; where it has none, or is ``None``, ``before`` and ``after`` are
            null, and there are no ``cases.csv``, ``statistics.pt`` and ``reliability.png``.
        output_dir: where reports go.
        model_file: where the deployed network's plain ``state_dict`` goes.
        deploy: ``"teacher"`` (default) or ``"student"``.
        interval: epochs between evaluations during training, 0 for none; they only feed TensorBoard.
        scalar_interval: iterations between TensorBoard scalars.
        task: what inference needs to know of this run (classes, spacing in mm, window), written beside the weights as
            ``<model_file without its ending>.json``; ``None`` writes nothing.

    Raises:
        InputError: for another value of ``deploy``.
    """

    def __init__(
        self,
        evaluation: EvaluationReport | None,
        output_dir: str | Path,
        model_file: str | Path,
        deploy: str = "teacher",
        interval: int = 0,
        scalar_interval: int = 10,
        task: Mapping[str, Any] | None = None,
    ) -> None:
        if deploy not in ("teacher", "student"):
            raise InputError(f"deploy: found {deploy!r}, wanted 'teacher' or 'student'")
        self.evaluation = evaluation if evaluation is not None and evaluation.has_cases else None
        self.output_dir = Path(output_dir)
        self.model_file = Path(model_file)
        self.deploy = deploy
        self.interval = interval
        self.scalar_interval = scalar_interval
        self.task = task
        self.board = TensorBoardCalibration(str(self.output_dir)) if evaluation is None else evaluation.board
        self.scores: dict[str, Any] = dict.fromkeys(MOMENTS)
        self.tables: dict[str, dict[str, list[float]]] = {}
        self._seconds = 0.0
        self._since = time.monotonic()

    def attach(self, trainer: AdaptationTrainer) -> None:
        """Register on ``trainer``.

        Raises:
            InputError: if it trains another number of classes than are evaluated, or than the task has names.
        """
        names = {} if self.task is None else {"class_names": self.task.get("class_names")}
        if self.evaluation is not None:
            names["evaluator's class_names"] = self.evaluation.evaluator.class_names
        for key, classes in names.items():
            if classes is not None and len(classes) != trainer.num_classes:
                raise InputError(
                    f"num_classes: the trainer has {trainer.num_classes}, but {key} has {len(classes)} "
                    f"({', '.join(classes)}); wanted one class for each name"
                )
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=self.scalar_interval), self._scalars)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        trainer.add_event_handler(Events.COMPLETED, self._complete)
        for event in (Events.TERMINATE, Events.EXCEPTION_RAISED):
            trainer.add_event_handler(event, lambda *_: self.board.close())

    def state_dict(self) -> dict[str, Any]:
        """Return the scores so far and the time spent, for a checkpoint."""
        return {"before": self.scores["before"], "tables": self.tables, "seconds": self.seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            InputError: if it is something that the final report cannot be made of.
        """
        before = state["before"]
        try:
            tables = {moment: table_as_lists(table_from_lists(lists)) for moment, lists in state["tables"].items()}
            seconds = float(state["seconds"])
            if before is not None and self.evaluation is not None:
                score_table({"before": before}, self.evaluation.evaluator.class_names)
        except Exception as error:  # whatever else is there fails in a way of its own
            raise InputError(f"report: holds no scores and tables ({type(error).__name__}: {error})") from error
        if not 0.0 <= seconds < math.inf:
            raise InputError(f"report.seconds: found {seconds}, wanted a number from 0")
        self.scores["before"] = before
        self.tables = tables
        self._seconds = seconds
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time spent training and evaluating, over all parts of a resumed run."""
        return self._seconds + time.monotonic() - self._since

    def deployed(self, trainer: AdaptationTrainer) -> nn.Module:
        """Return the network that leaves the training: the teacher by default."""
        return trainer.teacher.network if self.deploy == "teacher" else trainer.network

    def _start(self, trainer: AdaptationTrainer) -> None:
        if trainer.state.iteration == 0:
            self._since = time.monotonic()
            if trainer.warmup_epochs == 0:
                self._measure(trainer, "before")

    def _scalars(self, trainer: AdaptationTrainer) -> None:
        if is_main():
            values = {f"train/{name}": value for name, value in trainer.state.output[0].items()}
            for index, group in enumerate(trainer.optimizer.param_groups):
                values[f"train/learning_rate_{index}"] = group["lr"]
            self.board.scalars(trainer.state.iteration, values)

    def _epoch(self, trainer: AdaptationTrainer) -> None:
        epoch = trainer.state.epoch
        if epoch == trainer.warmup_epochs:
            self._measure(trainer, "before")
        elif self.interval and epoch % self.interval == 0 and epoch < trainer.state.max_epochs:
            self._measure(trainer, "during")

    def _measure(self, trainer: AdaptationTrainer, moment: str) -> None:
        """Evaluate the deployed network and keep what the final report needs."""
        if self.evaluation is None:
            return
        labeller = None if trainer.meta is None else trainer.meta.labeller
        scores = self.evaluation.measure(self.deployed(trainer), trainer.state.iteration, labeller)
        trainer.state.metrics.update(
            {f"{self.evaluation.tag}_{name}": value for name, value in scores.items() if isinstance(value, float)}
        )
        if moment in MOMENTS:
            self.scores[moment] = scores
            pooled = self.evaluation.evaluator.pooled
            self.tables[moment] = table_as_lists(reliability_table(pooled, region="foreground"))

    def _complete(self, trainer: AdaptationTrainer) -> None:
        if trainer.state.iteration < trainer.state.max_epochs * trainer.state.epoch_length:
            return  # interrupted: the checkpoint holds the rest
        self._measure(trainer, "after")
        if is_main():
            save_weights(self.deployed(trainer), self.model_file)
            if self.task is not None:
                write_json(self.model_file.with_suffix(".json"), dict(self.task))
            self._write(trainer)
        self.board.close()

    def _write(self, trainer: AdaptationTrainer) -> None:
        result = {
            **self.scores,
            "seconds": round(self.seconds, 1),
            "peak_memory_mib": round(peak_memory_mib(), 1),
            "skipped": {name: int(getattr(trainer.state, name)) for name in ("skipped", "meta_skipped", "overflows")},
        }
        write_json(self.output_dir / "metrics.json", result)
        if self.evaluation is None:
            for name in (CASES, SUMS, PICTURE):  # of an earlier run
                (self.output_dir / name).unlink(missing_ok=True)
            self.board.text("target_val", NOT_MEASURED)
            print(f"weights: {self.model_file} ({NOT_MEASURED})", flush=True)
            return
        self.evaluation.write_cases(self.output_dir)
        curves = {moment: table_from_lists(self.tables[moment]) for moment in MOMENTS if moment in self.tables}
        what = "Foreground reliability" if self.evaluation.has_background else "Reliability"
        save_figure(reliability_overlay(curves, f"{what} on target_val"), self.output_dir / PICTURE)
        shown = {moment: self.scores[moment] for moment in MOMENTS if self.scores[moment] is not None}
        table = score_table(shown, self.evaluation.evaluator.class_names, self.evaluation.has_background)
        print(f"\n{table}", flush=True)
        print(f"scores: {self.output_dir / 'metrics.json'}   weights: {self.model_file}", flush=True)


def peak_memory_mib() -> float:
    """Return the peak of this process in MiB: of GPU memory where CUDA is used, else resident memory."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated() > 0:
        return torch.cuda.max_memory_allocated() / 2**20
    # Linux reports KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
