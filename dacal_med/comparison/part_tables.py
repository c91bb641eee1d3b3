# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The tables of a comparison's parts: classes, subsets and unions of them, groups of cases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dacal_med.comparison.aggregate import table_order
from dacal_med.comparison.cells import (
    DICE,
    ECE,
    MIOU,
    NLL,
    NOTHING,
    has_results,
    head,
    mean_and_spread,
    method_name,
    rounded,
)
from dacal_med.reporting.tables import ABSENT
from dacal_med.reporting.tables import markdown_table as _table

_BY_GROUP = (DICE, MIOU, ECE, NLL)
_SUBSET_MEANS = (("dice", "Dice ↑"), ("miou", "mIoU ↑"))


def class_tables(result: Mapping[str, Any]) -> list[str]:
    """Return Dice and ECE of each class, as headed tables."""
    if not has_results(result):
        return []
    names = result["class_names"]
    parts = [
        "## Classes",
        f'Means over the seeds in which a score exists. "{ABSENT}": the class is in neither truth nor prediction.',
    ]
    for title, key, digits in (("Dice ↑", "dice", 3), ("ECE, one class against the rest ↓", "ece", 4)):
        rows = []
        for name in table_order(result):
            mean = result["methods"][name]["mean"]
            classes = [(mean or {}).get("per_class", {}).get(class_name, {}) for class_name in names]
            cells = [_class_cell(scores, key, digits) if mean is not None else NOTHING for scores in classes]
            rows.append([method_name(result, name), *cells])
        parts += [f"### {title}", _table(["method", *names], rows)]
    return parts


def _class_cell(scores: Mapping[str, Any], key: str, digits: int) -> str:
    # One against the rest, an absent class has an ECE near 0, which would read as well calibrated.
    return ABSENT if scores.get("dice") is None else rounded(scores.get(key), digits)


def subset_table(result: Mapping[str, Any]) -> list[str]:
    """Return the means over subsets of the classes, if the evaluation had any."""
    columns = [(name, key, title) for name in _parts(result, "class_subsets") for key, title in _SUBSET_MEANS]
    rows = []
    for method in table_order(result):
        mean, spread = ((result["methods"][method][kind] or {}).get("class_subsets", {}) for kind in ("mean", "std"))
        cells = [(mean.get(name, {}).get(key), spread.get(name, {}).get(key)) for name, key, _ in columns]
        rows.append([method_name(result, method), *(mean_and_spread(*cell, 3) for cell in cells)])
    if not columns:
        return []
    text = "Means over some of the classes, those of a subset that are present; mean ± standard deviation over seeds."
    return [
        "## Subsets of classes",
        text,
        _table(["method", *(f"{name}: {title}" for name, _, title in columns)], rows),
    ]


def region_table(result: Mapping[str, Any]) -> list[str]:
    """Return the Dice of unions of classes, if the evaluation had any."""
    names = _parts(result, "regions")
    if not names:
        return []
    rows = []
    for method in table_order(result):
        mean, spread = ((result["methods"][method][kind] or {}).get("regions", {}) for kind in ("mean", "std"))
        cells = []
        for name in names:
            cells.append(mean_and_spread(mean.get(name, {}).get("dice"), spread.get(name, {}).get("dice"), 3))
            cases = mean.get(name, {}).get("per_case", {}).get("dice", {})
            cells.append(mean_and_spread(cases.get("mean"), cases.get("std"), 3))
        rows.append([method_name(result, method), *cells])
    header = [f"{name}: Dice{kind} ↑" for name in names for kind in ("", ", mean over cases")]
    text = (
        "Unions of classes, which may overlap. Dice is pooled over voxels, mean ± standard deviation over seeds; "
        "beside it each case scored by itself, mean ± standard deviation over cases, both averaged over seeds."
    )
    return ["## Regions", text, _table(["method", *header], rows)]


def group_tables(result: Mapping[str, Any]) -> list[str]:
    """Return the main scores by group of cases, if the data have groups."""
    names = _parts(result, "per_group")
    if not names:
        return []
    parts = [
        "## Groups",
        "Scores pooled over the voxels of each group's cases; mean ± sample standard deviation over seeds.",
    ]
    for column in _BY_GROUP:
        rows = []
        for method in table_order(result):
            mean, spread = ((result["methods"][method][kind] or {}).get("per_group", {}) for kind in ("mean", "std"))
            cells = [(mean.get(name, {}).get(column.key), spread.get(name, {}).get(column.key)) for name in names]
            rows.append([method_name(result, method), *(mean_and_spread(*cell, column.digits) for cell in cells)])
        header = [f"{name} ({number} case{'s' if number > 1 else ''})" for name, number in names.items()]
        parts += [f"### {head(column)}", _table(["method", *header], rows)]
    return parts


def _parts(result: Mapping[str, Any], key: str) -> dict[str, int]:
    """Return the names below ``key`` of any method's scores, with the number of cases where they have one."""
    means = [entry["mean"] or {} for entry in result["methods"].values()]
    return {name: int(part.get("cases", 0)) for mean in means for name, part in mean.get(key, {}).items()}
