# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A comparison as a document: ``comparison.md`` with its tables and pictures, and ``comparison.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dacal_med.comparison.aggregate import table_order
from dacal_med.comparison.plots import dice_against_ece, label, reliability_curves, reliability_overlay_of
from dacal_med.core.scores import ReliabilityTable
from dacal_med.handlers.evaluation import save_figure
from dacal_med.reporting.files import write_bytes, write_json
from dacal_med.reporting.tables import ABSENT
from dacal_med.reporting.tables import markdown_table as _table

NOTHING = "—"
RELIABILITY, DICE_ECE = "reliability.png", "dice_ece.png"


class _Column(NamedTuple):
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


_DICE, _MIOU = _Column("Dice", "dice", 3, 1), _Column("mIoU", "miou", 3, 1)
_ECE = _Column("ECE", "ece", 4, -1)
_FOREGROUND_ECE, _NLL = _Column("foreground ECE", "foreground_ece", 4, -1), _Column("NLL", "nll", 3, -1)
_OVERLAP = (
    _DICE,
    _MIOU,
    _Column("MCC", "mcc", 3, 1),
    _Column("mAP", "average_precision", 3, 1),
)
_MAIN = (
    *_OVERLAP,
    _ECE,
    _FOREGROUND_ECE,
    _Column("boundary ECE", "boundary_ece", 4, -1),
    _Column("class-wise ECE", "classwise_ece", 4, -1),
    _NLL,
    _Column("foreground NLL", "foreground_nll", 3, -1),
    _Column("Brier", "brier", 4, -1),
)
_BY_GROUP = (_DICE, _MIOU, _ECE, _NLL)
_SUBSET_MEANS = (("dice", "Dice ↑"), ("miou", "mIoU ↑"))
_SHORT = (_DICE, _ECE, _FOREGROUND_ECE, _NLL)
_CASES = (*_OVERLAP, _ECE, _FOREGROUND_ECE, _NLL)
_ARROWS = {1: " ↑", -1: " ↓", 0: ""}

_READING = (
    "Scores are pooled over all voxels of all cases; cells are the mean ± sample standard deviation over seeds. ECE is "
    "top-label, with 15 bins of equal width, as a fraction; NLL is in nats. ECE alone rewards guessing the base rate; "
    "NLL and Brier are proper scores. MCC is the Matthews correlation of all classes, mAP the mean over classes of the "
    "average precision of voxels. The best mean of each column is bold, oracles aside: they see target labels and "
    'are bounds, not methods. "↳" marks a post-hoc calibrator, which sits on the trained method above it and trains no '
    "segmentation network."
)
_INTERVALS = (
    "Method minus reference, in pairs, with two-sided 95 % intervals of Student's t, not corrected for the number of "
    "comparisons."
)


def comparison_markdown(result: Mapping[str, Any], command: str, facts: Mapping[str, str]) -> str:
    """Return a comparison as Markdown.

    Args:
        result: of :func:`dacal_med.comparison.aggregate.collect`.
        command: what was run, so that it can be run again.
        facts: further facts by name, e.g. commit, machine, date.
    """
    parts = [
        "# Comparison",
        "## How it was made",
        f"```\n{command}\n```",
        "\n".join(f"- {name}: {value}" for name, value in facts.items()),
        "## Scores",
        _READING,
        _main_table(result),
        *_failures(result),
        *_pictures(result),
        *_differences(result),
        "## Mean over cases",
        "Each case scored by itself: mean ± sample standard deviation over cases, both averaged over seeds.",
        _case_table(result),
        *_class_tables(result),
        *_subset_table(result),
        *_region_table(result),
        *_group_tables(result),
        *_temperature_table(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_comparison(
    folder: Path,
    result: Mapping[str, Any],
    tables: Mapping[str, ReliabilityTable],
    command: str,
    facts: Mapping[str, str],
) -> None:
    """Write ``comparison.json``, ``comparison.md`` and the pictures that it shows, each whole or not at all.

    Args:
        folder: of the comparison.
        result: of :func:`dacal_med.comparison.aggregate.collect`.
        tables: of the foreground, by method, as of :func:`dacal_med.comparison.aggregate.pooled_tables`.
        command: what was run.
        facts: further facts by name.

    Raises:
        InputError: if a file cannot be written.
    """
    write_json(folder / "comparison.json", {**result, "command": command, "facts": dict(facts)})
    if _has_results(result):
        save_figure(reliability_overlay_of(tables, result), folder / RELIABILITY)
        save_figure(dice_against_ece(result), folder / DICE_ECE)
    write_bytes(folder / "comparison.md", comparison_markdown(result, command, facts).encode())


def _main_table(result: Mapping[str, Any]) -> str:
    order = table_order(result)
    columns = [_score_cells(result, order, column) for column in _MAIN]
    for key, factor, digits in (("seconds", 1 / 60, 1), ("peak_memory_mib", 1.0, 0)):
        costs = [result["methods"][name][key] for name in order]
        columns.append([_mean_and_spread(cost["mean"], cost["std"], digits, factor) for cost in costs])
    header = ["method", *(_head(column) for column in _MAIN), "time (min)", "peak memory (MiB)"]
    return _table(header, [[_name(result, name), *cells] for name, *cells in zip(order, *columns, strict=True)])


def _score_cells(result: Mapping[str, Any], order: Sequence[str], column: _Column) -> list[str]:
    """Return a column of the main table, the best means bold; ties are those that read the same."""
    methods = result["methods"]
    means = {name: _number((methods[name]["mean"] or {}).get(column.key), column.digits) for name in order}
    competing = [float(means[name]) for name in order if not methods[name]["oracle"] and means[name] != NOTHING]
    best = max(competing, key=lambda value: column.sign * value) if competing else None
    cells = []
    for name in order:
        mean, spread = ((methods[name][kind] or {}).get(column.key) for kind in ("mean", "std"))
        cell = _mean_and_spread(mean, spread, column.digits)
        bold = mean is not None and not methods[name]["oracle"] and float(means[name]) == best
        cells.append(f"**{cell}**" if bold else cell)
    return cells


def _failures(result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {label(entry)}, seed {seed}: {' '.join(message.split())}"
        for name in table_order(result)
        for entry in [result["methods"][name]]
        for seed, message in entry["failed"].items()
    ]
    return ["Runs without results; means are over the other seeds:", "\n".join(lines)] if lines else []


def _pictures(result: Mapping[str, Any]) -> list[str]:
    if not _has_results(result):
        return []
    shown = reliability_curves(result)
    left_out = [
        label(result["methods"][name])
        for name in table_order(result)
        if name not in shown and result["methods"][name]["seeds"]
    ]
    text = (
        "Reliability in the foreground, pooled over cases and seeds. Errors of opposite sign in different seeds "
        "cancel in these sums, so that the ECE in the legend need not be the table's mean over seeds."
    )
    if left_out:
        text += f" Not shown, for want of distinct colours: {'; '.join(left_out)}."
    return [
        "## Pictures",
        f"![Reliability in the foreground]({RELIABILITY})",
        text,
        f"![Dice against calibration error]({DICE_ECE})",
        "Dice against calibration error: means large with the standard deviation over seeds, seeds small, oracles "
        "hollow.",
    ]


def _differences(result: Mapping[str, Any]) -> list[str]:
    heading = [f"## Differences to {label(result['methods'][result['reference']])}"]
    if not result["paired"]:
        return [*heading, *(result["notes"] or ["There is nothing to compare it with."])]
    return [
        *heading,
        _INTERVALS,
        "Over seeds, from scores pooled over voxels; relative changes are of the mean over those seeds:",
        _difference_table(result, "paired", "seeds", relative=True),
        "Over cases, each case averaged over seeds; this spread says nothing about other seeds:",
        _difference_table(result, "per_case_paired", "cases", relative=False),
    ]


def _difference_table(result: Mapping[str, Any], section: str, unit: str, relative: bool) -> str:
    header = ["method", unit, *(f"Δ {_head(column)}" for column in _SHORT)]
    changed = (_ECE, _FOREGROUND_ECE) if relative else ()
    header += [f"{column.title}, relative change" for column in changed]
    rows = []
    for name in table_order(result):
        if name == result["reference"]:
            # Without its row, calibrators that sit on it would stand under another method.
            rows.append([f"{_name(result, name)} (reference)", *[NOTHING] * (len(header) - 1)])
        else:
            scores = result[section][name]
            number = max(scores[column.key]["n"] for column in _SHORT)
            cells = [_difference(scores[column.key], column.digits, number) for column in _SHORT]
            changes = [scores[column.key]["relative"] for column in changed]
            cells += [NOTHING if change is None else f"{_number(100 * change, 1, '+')} %" for change in changes]
            rows.append([_name(result, name), str(number), *cells])
    return _table(header, rows)


def _difference(score: Mapping[str, Any], digits: int, number: int) -> str:
    """Return "difference [low, high]", with the number of pairs where it is not that of the row."""
    cell = _number(score["difference"], digits, "+")
    if score["low"] is not None:
        cell += f" [{_number(score['low'], digits, '+')}, {_number(score['high'], digits, '+')}]"
    return cell if score["n"] == number else f"{cell} (n = {score['n']})"


def _case_table(result: Mapping[str, Any]) -> str:
    rows = []
    for name in table_order(result):
        over_cases = (result["methods"][name]["mean"] or {}).get("per_case", {})
        scores = [(over_cases.get(column.key, {}), column.digits) for column in _CASES]
        cells = [_mean_and_spread(score.get("mean"), score.get("std"), digits) for score, digits in scores]
        rows.append([_name(result, name), *cells])
    return _table(["method", *(_head(column) for column in _CASES)], rows)


def _class_tables(result: Mapping[str, Any]) -> list[str]:
    if not _has_results(result):
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
            rows.append([_name(result, name), *cells])
        parts += [f"### {title}", _table(["method", *names], rows)]
    return parts


def _class_cell(scores: Mapping[str, Any], key: str, digits: int) -> str:
    # One against the rest, an absent class has an ECE near 0, which would read as well calibrated.
    return ABSENT if scores.get("dice") is None else _number(scores.get(key), digits)


def _subset_table(result: Mapping[str, Any]) -> list[str]:
    """Return the means over subsets of the classes, if the evaluation had any."""
    columns = [(name, key, title) for name in _parts(result, "class_subsets") for key, title in _SUBSET_MEANS]
    rows = []
    for method in table_order(result):
        mean, spread = ((result["methods"][method][kind] or {}).get("class_subsets", {}) for kind in ("mean", "std"))
        cells = [(mean.get(name, {}).get(key), spread.get(name, {}).get(key)) for name, key, _ in columns]
        rows.append([_name(result, method), *(_mean_and_spread(*cell, 3) for cell in cells)])
    if not columns:
        return []
    text = "Means over some of the classes, those of a subset that are present; mean ± standard deviation over seeds."
    return [
        "## Subsets of classes",
        text,
        _table(["method", *(f"{name}: {title}" for name, _, title in columns)], rows),
    ]


def _region_table(result: Mapping[str, Any]) -> list[str]:
    """Return the Dice of unions of classes, if the evaluation had any."""
    names = _parts(result, "regions")
    if not names:
        return []
    rows = []
    for method in table_order(result):
        mean, spread = ((result["methods"][method][kind] or {}).get("regions", {}) for kind in ("mean", "std"))
        cells = []
        for name in names:
            cells.append(_mean_and_spread(mean.get(name, {}).get("dice"), spread.get(name, {}).get("dice"), 3))
            cases = mean.get(name, {}).get("per_case", {}).get("dice", {})
            cells.append(_mean_and_spread(cases.get("mean"), cases.get("std"), 3))
        rows.append([_name(result, method), *cells])
    header = [f"{name}: Dice{kind} ↑" for name in names for kind in ("", ", mean over cases")]
    text = (
        "Unions of classes, which may overlap. Dice is pooled over voxels, mean ± standard deviation over seeds; "
        "beside it each case scored by itself, mean ± standard deviation over cases, both averaged over seeds."
    )
    return ["## Regions", text, _table(["method", *header], rows)]


def _group_tables(result: Mapping[str, Any]) -> list[str]:
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
            rows.append([_name(result, method), *(_mean_and_spread(*cell, column.digits) for cell in cells)])
        header = [f"{name} ({number} case{'s' if number > 1 else ''})" for name, number in names.items()]
        parts += [f"### {_head(column)}", _table(["method", *header], rows)]
    return parts


def _parts(result: Mapping[str, Any], key: str) -> dict[str, int]:
    """Return the names below ``key`` of any method's scores, with the number of cases where they have one."""
    means = [entry["mean"] or {} for entry in result["methods"].values()]
    return {name: int(part.get("cases", 0)) for mean in means for name, part in mean.get(key, {}).items()}


def _temperature_table(result: Mapping[str, Any]) -> list[str]:
    """Return what the temperature maps of the evaluated cases carry, for methods that learn one."""
    columns = (
        ("mean T", "mean", 2),
        ("sd of log T", "std", 2),
        ("share at its bounds", "at_bounds", 3),
        ("AUROC for errors", "auroc", 3),
        ("AUROC, foreground", "foreground_auroc", 3),
    )
    rows = []
    for name in table_order(result):
        entry = result["methods"][name]
        mean, spread = ((entry[kind] or {}).get("temperature") for kind in ("mean", "std"))
        if mean is not None:
            cells = [_mean_and_spread(mean[key], (spread or {}).get(key), digits) for _, key, digits in columns]
            rows.append([_name(result, name), *cells])
    if not rows:
        return []
    text = (
        "The learned temperature on the evaluated cases, reported and used for nothing. AUROC: how often a voxel where "
        "the deployed network is wrong has a higher T than one where it is right."
    )
    return ["## Temperature", text, _table(["method", *(title for title, _, _ in columns)], rows)]


def _name(result: Mapping[str, Any], name: str) -> str:
    """Return a method's first cell: under its base without the base's title, and how many seeds it has, if not all."""
    entry = result["methods"][name]
    base = result["methods"].get(entry["base"])
    text = label(entry)
    if entry["base"] is not None and not entry["oracle"]:
        text = "↳ " + (text if base is None else text.removeprefix(f"{base['title']} + "))
    done, failed = len(entry["seeds"]), len(entry["failed"])
    return f"{text} — {done} of {done + failed} seeds" if failed else text


def _has_results(result: Mapping[str, Any]) -> bool:
    return any(entry["seeds"] for entry in result["methods"].values())


def _head(column: _Column) -> str:
    return column.title + _ARROWS[column.sign]


def _mean_and_spread(mean: float | None, spread: float | None, digits: int, factor: float = 1.0) -> str:
    if mean is None or spread is None:
        return _number(None if mean is None else factor * mean, digits)
    return f"{_number(factor * mean, digits)} ± {_number(factor * spread, digits)}"


def _number(value: float | None, digits: int, sign: str = "") -> str:
    # Adding 0.0 turns -0.0, to which small negative values are rounded, into 0.0.
    return NOTHING if value is None else f"{round(value, digits) + 0.0:{sign}.{digits}f}"
