# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OVERALL = (
    ("Dice", "dice"),
    ("mIoU", "miou"),
    ("MCC", "mcc"),
    ("mAP", "average_precision"),
    ("ECE", "ece"),
    ("foreground ECE", "foreground_ece"),
    ("NLL", "nll"),
)
PER_CLASS = (("Dice", "dice"), ("IoU", "iou"), ("ECE", "ece"), ("NLL", "nll"))
ABSENT = "absent"


def score_table(
    scores: Mapping[str, Mapping[str, Any]], class_names: Sequence[str], has_background: bool = True
) -> str:
    """Return a plain-text table of scores at several moments, overall, by class and by region.

    Args:
        scores: summaries by moment, e.g. ``{"before": S, "after": S}`` as :func:`dacal_med.core.scores.summarise` makes
            them.
        class_names: names by class.
        has_background: whether one of them is background; if none is, scores of the foreground repeat others and are
            left out.

    Returns:
        Lines for a terminal; with two moments the last column is their difference. Values are fractions (NLL in nats);
        a class in neither truth nor prediction reads "absent".
    """
    moments = list(scores)
    header = ["", "score", *moments, *(["change"] if len(moments) == 2 else [])]
    rows = [
        ["overall", title, *_cells([scores[m].get(key) for m in moments])]
        for title, key in OVERALL
        if not repeats(key, has_background)
    ]
    for name in class_names:
        for title, key in PER_CLASS:
            values = [scores[m]["per_class"][name].get(key) for m in moments]
            rows.append([name, title, *_cells(values)])
    for name in dict.fromkeys(name for m in moments for name in scores[m].get("regions", {})):
        found = [scores[m].get("regions", {}).get(name, {}).get("dice") for m in moments]
        rows.append([f"region: {name}", "Dice", *_cells(found)])
    for previous, row in zip(rows[:-1][::-1], rows[1:][::-1], strict=True):
        if previous[0] == row[0]:
            row[0] = ""
    widths = [max(len(line[k]) for line in [header, *rows]) for k in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    lines = [
        "  ".join(_aligned(cell, width, k) for k, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in [header, *rows]
    ]
    return "\n".join([lines[0], rule, *lines[1:]])


def repeats(score: str, has_background: bool) -> bool:
    """Return whether a score says what another does: one of the foreground, where no class is background."""
    return not has_background and score.startswith("foreground_")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown: the first column to the left, the others to the right, vertical bars escaped."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (header, *rows)]
    rule = "|" + "|".join(["---", *["---:"] * (len(header) - 1)]) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _cells(values: Sequence[float | None]) -> list[str]:
    cells = [ABSENT if value is None else f"{value:.4f}" for value in values]
    if len(values) == 2:
        first, second = values
        cells.append("" if first is None or second is None else f"{second - first:+.4f}")
    return cells


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)
