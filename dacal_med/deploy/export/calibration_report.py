# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a site's labelled cases say of a new calibration, as numbers, a table and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dacal_med.comparison.aggregate import paired_difference
from dacal_med.core.scores import SCORES, pool, summarise_run
from dacal_med.core.statistics import SegmentationStatistics

HEADING = "## Calibrated at the site"
_TITLES = {"nll": "NLL", "ece": "ECE", "foreground_ece": "foreground ECE", "brier": "Brier score", "dice": "Dice"}


@dataclass(frozen=True)
class CalibrationReport:
    """A calibration, measured on cases that its fit did not see.

    Attributes:
        names: of the classes.
        fitted: on all cases: ``temperature``, or ``weight`` and ``bias`` by class.
        held_out: what was held out at a time.
        before: sums of each case, as exported.
        after: sums of each case, calibrated on the other cases.
        always: write even if it is not better.
    """

    names: tuple[str, ...]
    fitted: Mapping[str, float | list[float]]
    held_out: str
    before: tuple[SegmentationStatistics, ...]
    after: tuple[SegmentationStatistics, ...]
    always: bool = False

    @property
    def differences(self) -> dict[str, dict[str, float | int | None]]:
        """Mean difference over cases of each score, after minus before, with its 95 % interval."""
        result = {}
        for name in _TITLES:
            pairs = np.array([[SCORES[name](a), SCORES[name](b)] for a, b in zip(self.after, self.before, strict=True)])
            pairs = pairs[np.isfinite(pairs).all(axis=1)]
            result[name] = paired_difference(pairs[:, 0], pairs[:, 1])
        return result

    @property
    def better(self) -> bool:
        """Whether calibration got better: the NLL's interval lies below 0, and the pooled ECE is not larger.

        NLL is a proper score, which cannot be lowered by guessing base rates; ECE is what is asked for.
        """
        high = self.differences["nll"]["high"]
        before, after = (SCORES["ece"](pool(list(cases))) for cases in (self.before, self.after))
        return high is not None and high < 0 and after <= before

    @property
    def written(self) -> bool:
        """Whether the calibrated folder is written."""
        return self.better or self.always

    def table(self) -> str:
        """Return a Markdown table of scores on held-out cases."""
        before, after = (summarise_run(cases, self.names) for cases in (self.before, self.after))
        lines = [
            f"Held-out cases: {len(self.before)}, {self.held_out} in turn.",
            "",
            "| Score | As exported | Calibrated | Difference over cases [95 % interval] |",
            "|---|---|---|---|",
        ]
        for name, title in _TITLES.items():
            difference = self.differences[name]
            interval = "not measured"
            if difference["low"] is not None:
                interval = f"{difference['difference']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"
            lines.append(f"| {title} | {_number(before[name])} | {_number(after[name])} | {interval} |")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Return one paragraph: what was fitted, whether it is better, whether it is written."""
        parts = []
        for name, value in self.fitted.items():
            values = value if isinstance(value, list) else [value]
            parts.append(f"{name} " + ", ".join(f"{v:.4g}" for v in values))
        what = f"Fitted on all cases: {'; '.join(parts)}."
        if self.better:
            return f"{what} Calibration got better on held-out cases. Written."
        found = (
            "Calibration did not get better on held-out cases (wanted: the interval of NLL below 0, ECE not larger)."
        )
        return f"{what} {found} " + ("Written all the same, as asked." if self.always else "Nothing is written.")

    def document(self) -> dict[str, Any]:
        """Return everything, ready for JSON; no case is named."""
        return {
            "fitted": dict(self.fitted),
            "class_names": list(self.names),
            "cases": len(self.before),
            "held_out": self.held_out,
            "better": self.better,
            "differences": self.differences,
            "before": summarise_run(self.before, self.names),
            "after": summarise_run(self.after, self.names),
        }


def with_calibration(card: str, report: CalibrationReport) -> str:
    """Return a model card with what was calibrated at its end, in place of an earlier such part."""
    kept = card.partition(f"\n{HEADING}\n")[0].rstrip("\n")
    what = (
        "Class probabilities were fitted to labelled cases of the site that uses this folder. What stands under "
        "'Measured' is of the network before. There is no `configs/trust.json`: it described the confidence before."
    )
    return f"{kept}\n\n{HEADING}\n\n{what}\n\n{report.table()}\n\n{report.verdict()}\n"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
