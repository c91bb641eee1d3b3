# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Image panels of evaluation cases: target slice, truth, prediction, confidence, error, temperature."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events
from matplotlib.figure import Figure

from dacal_med.engines.evaluator import CalibrationEvaluator
from dacal_med.reporting.panels import central_slice, image_panel

MAX_SIDE = 1024
"""Pixels along the longer side of what is drawn: a panel shows fewer, and figures are kept until they are written."""


class CasePanels:
    """Draws the first ``count`` cases of an evaluation, large ones at every second, third ... pixel.

    Args:
        evaluator: whose cases are drawn.
        count: how many, 0 for none.
    """

    def __init__(self, evaluator: CalibrationEvaluator, count: int) -> None:
        self.evaluator = evaluator
        self.count = count
        self._figures: list[tuple[int, Figure]] = []
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def take(self) -> list[tuple[int, Figure]]:
        """Return ``(case index, figure)`` of the last evaluation and forget them."""
        figures, self._figures = self._figures, []
        return figures

    def _draw(self, engine: Engine) -> None:
        output: Any = engine.state.output
        if output["index"] >= self.count:
            return
        image, label, probabilities = output["image"], output["label"], output["probabilities"]
        confidence, prediction = probabilities.max(dim=1, keepdim=True)
        volumes = {
            "image": image[:, :1],
            "label": label,
            "prediction": prediction,
            "confidence": confidence,
            "error": prediction != label,
        }
        if "temperature" in output:
            volumes["temperature"] = output["temperature"]
        ignored = self.evaluator.ignore_index
        if ignored is not None:
            volumes["error"] = volumes["error"] & (label != ignored)
        names, background = self.evaluator.class_names, self.evaluator.background
        slices = central_slice({name: volume[0, 0].float().cpu() for name, volume in volumes.items()}, background)
        if output["picture"]:
            # Rows of a picture go down, an axis of a figure goes up.
            slices = {name: part.flip(1) for name, part in slices.items()}
        step = -(-max(slices["prediction"].shape) // MAX_SIDE)
        slices = {name: part[::step, ::step].clone() for name, part in slices.items()}
        figure = image_panel(class_names=names, background=background, **slices)  # type: ignore[arg-type]  # no title among them
        self._figures.append((int(output["index"]), figure))
