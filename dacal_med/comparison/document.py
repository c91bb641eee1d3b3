# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A comparison as a document: ``comparison.md`` with its tables and pictures, and ``comparison.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dacal_med.comparison.aggregate import table_order
from dacal_med.comparison.cells import (
    DICE,
    ECE,
    MIOU,
    NLL,
    NOTHING,
    Column,
    has_results,
    head,
    mean_and_spread,
    method_name,
    rounded,
    shown_columns,
)
from dacal_med.comparison.part_tables import class_tables, group_tables, region_table, subset_table
from dacal_med.comparison.plots import (
    dice_against_ece,
    label,
    reliability_curves,
    reliability_overlay_of,
    reliability_title,
)
from dacal_med.core.scores import ReliabilityTable
from dacal_med.handlers.evaluation import save_figure
from dacal_med.io.files import write_bytes, write_json
from dacal_med.reporting.tables import markdown_table as _table

RELIABILITY, DICE_ECE = "reliability.png", "dice_ece.png"

_FOREGROUND_ECE = Column("foreground ECE", "foreground_ece", 4, -1)
_OVERLAP = (
    DICE,
    MIOU,
    Column("MCC", "mcc", 3, 1),
    Column("mAP", "average_precision", 3, 1),
)
_MAIN = (
    *_OVERLAP,
    ECE,
    _FOREGROUND_ECE,
    Column("boundary ECE", "boundary_ece", 4, -1),
    Column("class-wise ECE", "classwise_ece", 4, -1),
    NLL,
    Column("foreground NLL", "foreground_nll", 3, -1),
    Column("Brier", "brier", 4, -1),
)
_SHORT = (DICE, ECE, _FOREGROUND_ECE, NLL)
_CASES = (*_OVERLAP, ECE, _FOREGROUND_ECE, NLL)
_TEMPERATURE = (
    Column("mean T", "mean", 2, 0),
    Column("sd of log T", "std", 2, 0),
    Column("share at its bounds", "at_bounds", 3, 0),
    Column("AUROC for errors", "auroc", 3, 0),
    Column("AUROC, foreground", "foreground_auroc", 3, 0),
)

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
        *class_tables(result),
        *subset_table(result),
        *region_table(result),
        *group_tables(result),
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
    if has_results(result):
        save_figure(reliability_overlay_of(tables, result), folder / RELIABILITY)
        save_figure(dice_against_ece(result), folder / DICE_ECE)
    write_bytes(folder / "comparison.md", comparison_markdown(result, command, facts).encode())


def _main_table(result: Mapping[str, Any]) -> str:
    order = table_order(result)
    scores = shown_columns(result, _MAIN)
    columns = [_score_cells(result, order, column) for column in scores]
    for key, factor, digits in (("seconds", 1 / 60, 1), ("peak_memory_mib", 1.0, 0)):
        costs = [result["methods"][name][key] for name in order]
        columns.append([mean_and_spread(cost["mean"], cost["std"], digits, factor) for cost in costs])
    header = ["method", *(head(column) for column in scores), "time (min)", "peak memory (MiB)"]
    return _table(header, [[method_name(result, name), *cells] for name, *cells in zip(order, *columns, strict=True)])


def _score_cells(result: Mapping[str, Any], order: Sequence[str], column: Column) -> list[str]:
    """Return a column of the main table, the best means bold; ties are those that read the same."""
    methods = result["methods"]
    means = {name: rounded((methods[name]["mean"] or {}).get(column.key), column.digits) for name in order}
    competing = [float(means[name]) for name in order if not methods[name]["oracle"] and means[name] != NOTHING]
    best = max(competing, key=lambda value: column.sign * value) if competing else None
    cells = []
    for name in order:
        mean, spread = ((methods[name][kind] or {}).get(column.key) for kind in ("mean", "std"))
        cell = mean_and_spread(mean, spread, column.digits)
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
    if not has_results(result):
        return []
    shown = reliability_curves(result)
    left_out = [
        label(result["methods"][name])
        for name in table_order(result)
        if name not in shown and result["methods"][name]["seeds"]
    ]
    text = (
        f"{reliability_title(result)}, pooled over cases and seeds. Errors of opposite sign in different seeds "
        "cancel in these sums, so that the ECE in the legend need not be the table's mean over seeds."
    )
    if left_out:
        text += f" Not shown, for want of distinct colours: {'; '.join(left_out)}."
    return [
        "## Pictures",
        f"![{reliability_title(result)}]({RELIABILITY})",
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
    columns = shown_columns(result, _SHORT)
    header = ["method", unit, *(f"Δ {head(column)}" for column in columns)]
    changed = shown_columns(result, (ECE, _FOREGROUND_ECE)) if relative else []
    header += [f"{column.title}, relative change" for column in changed]
    rows = []
    for name in table_order(result):
        if name == result["reference"]:
            # Without its row, calibrators that sit on it would stand under another method.
            rows.append([f"{method_name(result, name)} (reference)", *[NOTHING] * (len(header) - 1)])
        else:
            scores = result[section][name]
            number = max(scores[column.key]["n"] for column in columns)
            cells = [_difference(scores[column.key], column.digits, number) for column in columns]
            changes = [scores[column.key]["relative"] for column in changed]
            cells += [NOTHING if change is None else f"{rounded(100 * change, 1, '+')} %" for change in changes]
            rows.append([method_name(result, name), str(number), *cells])
    return _table(header, rows)


def _difference(score: Mapping[str, Any], digits: int, number: int) -> str:
    """Return "difference [low, high]", with the number of pairs where it is not that of the row."""
    cell = rounded(score["difference"], digits, "+")
    if score["low"] is not None:
        cell += f" [{rounded(score['low'], digits, '+')}, {rounded(score['high'], digits, '+')}]"
    return cell if score["n"] == number else f"{cell} (n = {score['n']})"


def _case_table(result: Mapping[str, Any]) -> str:
    columns = shown_columns(result, _CASES)
    rows = []
    for name in table_order(result):
        over_cases = (result["methods"][name]["mean"] or {}).get("per_case", {})
        scores = [(over_cases.get(column.key, {}), column.digits) for column in columns]
        cells = [mean_and_spread(score.get("mean"), score.get("std"), digits) for score, digits in scores]
        rows.append([method_name(result, name), *cells])
    return _table(["method", *(head(column) for column in columns)], rows)


def _temperature_table(result: Mapping[str, Any]) -> list[str]:
    """Return what the temperature maps of the evaluated cases carry, for methods that learn one."""
    columns = shown_columns(result, _TEMPERATURE)
    rows = []
    for name in table_order(result):
        entry = result["methods"][name]
        mean, spread = ((entry[kind] or {}).get("temperature") for kind in ("mean", "std"))
        if mean is not None:
            cells = [mean_and_spread(mean[c.key], (spread or {}).get(c.key), c.digits) for c in columns]
            rows.append([method_name(result, name), *cells])
    if not rows:
        return []
    text = (
        "The learned temperature on the evaluated cases, reported and used for nothing. AUROC: how often a voxel where "
        "the deployed network is wrong has a higher T than one where it is right."
    )
    return ["## Temperature", text, _table(["method", *map(head, columns)], rows)]
