# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The cells of a comparison's tables: columns of scores, numbers with their spread, names of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dacal_med.comparison.plots import label
from dacal_med.reporting.tables import repeats

NOTHING = "—"

_ARROWS = {1: " ↑", -1: " ↓", 0: ""}


class Column(NamedTuple):
    """A column of numbers.

    Attributes:
        title: its head.
        key: of the score in a summary.
        digits: after the point.
        sign: 1 where more is better, -1 where less is, 0 where nothing is compared.
    """

    title: str
    key: str
    digits: int
    sign: int


DICE, MIOU = Column("Dice", "dice", 3, 1), Column("mIoU", "miou", 3, 1)
ECE, NLL = Column("ECE", "ece", 4, -1), Column("NLL", "nll", 3, -1)


def shown_columns(result: Mapping[str, Any], columns: Sequence[Column]) -> list[Column]:
    """Return the columns without those of the foreground, where no class is background and they repeat others."""
    return [column for column in columns if not repeats(column.key, result["background"] is not None)]


def head(column: Column) -> str:
    """Return a column's title with an arrow to its better end."""
    return column.title + _ARROWS[column.sign]


def mean_and_spread(mean: float | None, spread: float | None, digits: int, factor: float = 1.0) -> str:
    """Return a mean with its spread as far as they exist, both times ``factor``."""
    if mean is None or spread is None:
        return rounded(None if mean is None else factor * mean, digits)
    return f"{rounded(factor * mean, digits)} ± {rounded(factor * spread, digits)}"


def rounded(value: float | None, digits: int, sign: str = "") -> str:
    """Return a number with so many digits, and its sign if ``sign`` is ``"+"``; a dash for none."""
    # Adding 0.0 turns -0.0, to which small negative values are rounded, into 0.0.
    return NOTHING if value is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def method_name(result: Mapping[str, Any], name: str) -> str:
    """Return a method's first cell: under its base without the base's title, and how many seeds it has, if not all."""
    entry = result["methods"][name]
    base = result["methods"].get(entry["base"])
    text = label(entry)
    if entry["base"] is not None and not entry["oracle"]:
        text = "↳ " + (text if base is None else text.removeprefix(f"{base['title']} + "))
    done, failed = len(entry["seeds"]), len(entry["failed"])
    return f"{text} — {done} of {done + failed} seeds" if failed else text


def has_results(result: Mapping[str, Any]) -> bool:
    """Return whether any method has results."""
    return any(entry["seeds"] for entry in result["methods"].values())
