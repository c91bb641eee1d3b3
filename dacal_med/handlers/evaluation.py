# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Measuring a network on labelled target cases, and showing the result in TensorBoard, tables and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from dacal_med.core.pseudo_labels import LearnedTemperature
from dacal_med.core.scores import SCORES, ReliabilityTable, reliability_table
from dacal_med.engines.evaluator import CalibrationEvaluator
from dacal_med.engines.parallel import is_main
from dacal_med.handlers.cases import CasePanels
from dacal_med.handlers.sums import save_sums
from dacal_med.handlers.temperatures import TemperatureMaps
from dacal_med.handlers.tensorboard import TensorBoardCalibration
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_bytes, write_json
from dacal_med.reporting.reliability import reliability_overlay
from dacal_med.reporting.tables import score_table

CASES, SUMS, PICTURE = "cases.csv", "statistics.pt", "reliability.png"


class EvaluationReport:
    """Evaluates a network and writes what users read.

    Args:
        evaluator: measures on labelled cases.
        output_dir: where TensorBoard events, tables and pictures go.
        panels: how many cases get an image panel.
        tag: prefix in TensorBoard.
    """

    def __init__(
        self, evaluator: CalibrationEvaluator, output_dir: str | Path, panels: int = 3, tag: str = "target_val"
    ) -> None:
        self.evaluator = evaluator
        self.output_dir = Path(output_dir)
        self.tag = tag
        self.temperatures = TemperatureMaps(evaluator)  # before the panels, which show its maps
        self.panels = CasePanels(evaluator, panels)
        self.board = TensorBoardCalibration(str(self.output_dir))

    def measure(self, network: nn.Module, step: int, labeller: LearnedTemperature | None = None) -> dict[str, Any]:
        """Evaluate ``network`` and show it in TensorBoard at ``step``.

        Args:
            network: maps images to logits.
            step: iteration for TensorBoard.
            labeller: learns a temperature, to be shown in the image panels and related to errors.

        Returns:
            The scores; with ``labeller`` also ``temperature``, as of :meth:`ErrorRanking.summary`.
        """
        self.evaluator.network = network
        self.temperatures.labeller = labeller
        self.evaluator.run()
        if is_main():
            self.board.calibration(
                step, self.tag, self.evaluator.pooled, self.evaluator.cases, self.evaluator.class_names
            )
            self.board.parts(step, self.tag, self.evaluator.scores, self.has_background)
            for index, figure in self.panels.take():
                self.board.panel(step, f"{self.tag}/case_{index}", figure)
        summary = self.temperatures.summary()
        return self.evaluator.scores if summary is None else {**self.evaluator.scores, "temperature": summary}

    def run(self) -> dict[str, Any]:
        """Evaluate the evaluator's own network and write what was measured.

        Files: ``evaluation.json``, ``cases.csv``, ``statistics.pt`` and ``reliability.png``.

        Returns:
            The scores.

        Raises:
            InputError: if there is no case.
        """
        if not self.has_cases:
            raise InputError(
                "validate#dataset: found no labelled case, wanted some to evaluate on; give them as 'target_val' in "
                "the datalist.json"
            )
        scores = self.measure(self.evaluator.network, step=0)
        if is_main():
            write_json(self.output_dir / "evaluation.json", scores)
            self.write_cases(self.output_dir)
            save_figure(
                reliability_overlay(
                    {
                        region: reliability_table(self.evaluator.pooled, region=region)
                        for region in ("all", *(["foreground"] if self.has_background else []))
                    },
                    f"Reliability on {self.tag}",
                ),
                self.output_dir / PICTURE,
            )
            print(score_table({"score": scores}, self.evaluator.class_names, self.has_background), flush=True)
            print(f"scores: {self.output_dir / 'evaluation.json'}", flush=True)
        self.board.close()
        for handler in self.evaluator.val_handlers:  # such as one that tracks the run, which ends here
            if hasattr(handler, "close"):
                handler.close()
        return scores

    @property
    def has_cases(self) -> bool:
        """Whether there is anything to measure on."""
        return len(self.evaluator.val_data) > 0

    @property
    def has_background(self) -> bool:
        """Whether a class is background; if none is, the foreground is everything."""
        return self.evaluator.background is not None

    def write_cases(self, folder: Path) -> None:
        """Write each case's sums (``statistics.pt``) and scores (``cases.csv``).

        A row of ``cases.csv`` has the case's number, its group and its scores, each empty if there is none.
        """
        evaluator = self.evaluator
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "group", *SCORES])
        for index, (case, group) in enumerate(zip(evaluator.cases, evaluator.groups, strict=True)):
            values = [score(case) for score in SCORES.values()]
            writer.writerow([index, group or "", *("" if v != v else f"{v:.6g}" for v in values)])
        write_bytes(folder / CASES, text.getvalue().encode())
        save_sums(
            folder / SUMS,
            evaluator.cases,
            evaluator.class_names,
            evaluator.groups,
            evaluator.class_subsets,
            evaluator.regions,
        )


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes(path, buffer.getvalue())


def table_as_lists(table: ReliabilityTable) -> dict[str, list[float]]:
    """Return a reliability table as plain lists, for a checkpoint."""
    return {name: [float(x) for x in values] for name, values in table._asdict().items()}


def table_from_lists(lists: Mapping[str, list[float]]) -> ReliabilityTable:
    """Return the table that :func:`table_as_lists` was given."""
    return ReliabilityTable(**{name: torch.tensor(values, dtype=torch.float64) for name, values in lists.items()})
