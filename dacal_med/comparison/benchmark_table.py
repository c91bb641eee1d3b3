# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Results of a comparison beside published numbers, as values and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

from dacal_med.comparison.aggregate import table_order
from dacal_med.comparison.cells import NOTHING
from dacal_med.comparison.plots import label
from dacal_med.comparison.protocols import DEFAULT
from dacal_med.comparison.published import STATUSES, Published, Source, Task
from dacal_med.data import Datalist
from dacal_med.reporting.tables import markdown_table

_TITLES = {"miou": "mIoU", "dice": "Dice", "ece": "ECE"}
_ARROWS = {"miou": "↑", "dice": "↑", "ece": "↓"}
_DIGITS = {"miou": 1, "dice": 1, "ece": 2}
HERE = "here"


class Column(NamedTuple):
    """A score that others published or that is measured here.

    Attributes:
        metric: its name in a summary.
        classes: over how many classes it is a mean; of no meaning for ECE.
        over: ``"pixels"`` or ``"cases"``.
    """

    metric: str
    classes: int
    over: str

    def title(self) -> str:
        """Return its head."""
        classes = "" if self.metric == "ece" else f", {self.classes} class{'es' if self.classes > 1 else ''}"
        return f"{_TITLES[self.metric]}{classes}{', mean over cases' if self.over == 'cases' else ''} (%)"


def benchmark_values(result: Mapping[str, Any], task: Task | None, datalist: Datalist) -> dict[str, Any]:
    """Return what a benchmark's table shows, ready for JSON.

    Args:
        result: ``comparison.json``.
        task: with the published numbers, ``None`` if there are none.
        datalist: the data of the results.

    Returns:
        ``task`` (its name), ``title``, ``data`` (name, number of evaluated images and of classes), ``wanted`` (the same
        of the task), ``complete`` (whether they agree), ``not_comparable`` (in words, empty if they do), ``columns``,
        ``here`` (by method ``title``, ``oracle``, ``failed`` and ``scores``: ``mean``, ``std`` and ``n`` over seeds in
        percent, by column), ``published`` (the task's results) and ``facts`` of the comparison.
    """
    counted = len(result["class_names"]) - (result["background"] is not None)
    columns = _columns(task, counted)
    here = {}
    for name in table_order(result):
        entry = result["methods"][name]
        here[name] = {
            "title": label(entry),
            "oracle": entry["oracle"],
            "failed": entry["failed"],
            "scores": {column.title(): _scores(entry, column, counted) for column in columns},
        }
    told = not_comparable(task, datalist)
    data = {"name": datalist.name, "target_val": len(datalist.target_val), "classes": len(datalist.class_names)}
    return {
        "task": None if task is None else task.name,
        "title": datalist.name if task is None else task.title,
        "data": data,
        "complete": task is not None and not told,
        "not_comparable": told,
        "wanted": None if task is None else {"name": task.data, "target_val": task.target_val, "classes": task.classes},
        "columns": [column._asdict() for column in columns],
        "here": here,
        "published": [] if task is None else [asdict(entry) for entry in task.results],
        "facts": result["facts"],
    }


def not_comparable(task: Task | None, datalist: Datalist) -> str:
    """Return why results on the data are not comparable with the published numbers, empty if they are.

    Args:
        task: with the published numbers, ``None`` if there are none.
        datalist: the data of the results.
    """
    if task is None:
        return ""
    reasons, evaluated, classes = [], len(datalist.target_val), len(datalist.class_names)
    if not datalist.name.startswith(task.data) or evaluated != task.target_val:
        reasons.append(
            f"the published numbers are of {task.data!r} with {task.target_val} images in target_val, the results here "
            f"of {datalist.name!r} with {evaluated}"
        )
    if classes != task.classes:
        ignored = "; pixels of the others are ignored here, and count there" if classes < task.classes else ""
        reasons.append(
            f"the published numbers are of labels with {task.classes} classes, the results here of labels with "
            f"{classes}{ignored}"
        )
    return "".join(f"{reason}. " for reason in reasons).strip()


def _columns(task: Task | None, counted: int) -> list[Column]:
    """Return the columns of the published numbers, and those of the same scores and ECE as they are measured here."""
    known = [] if task is None else [Column(entry.metric, entry.classes, entry.over) for entry in task.results]
    # ECE is over pixels whatever the classes: one column, last.
    rest = [column for column in dict.fromkeys(known) if column.metric != "ece"]
    if not rest:
        rest = [Column("dice", counted, "pixels"), Column("miou", counted, "pixels")]
    elif all(column.classes != counted for column in rest):
        rest += dict.fromkeys(column._replace(classes=counted) for column in rest)
    return [*rest, Column("ece", counted, "pixels")]


def _scores(entry: Mapping[str, Any], column: Column, counted: int) -> dict[str, float | int | None]:
    values = [_value(summary, column, counted) for summary in entry["seeds"].values()]
    mean, spread = (_value(entry[kind] or {}, column, counted) for kind in ("mean", "std"))
    return {
        "mean": None if mean is None else 100.0 * mean,
        "std": None if spread is None else 100.0 * spread,
        "n": sum(value is not None for value in values),
    }


def _value(summary: Mapping[str, Any], column: Column, counted: int) -> float | None:
    """Return a score of a summary; over other classes than all that count, from the subset "<number> classes"."""
    if column.metric == "ece":
        return summary.get("ece")
    if column.over == "cases":
        return summary.get("per_case", {}).get(column.metric, {}).get("mean") if column.classes == counted else None
    if column.classes == counted:
        return summary.get(column.metric)
    return summary.get("class_subsets", {}).get(f"{column.classes} classes", {}).get(column.metric)


def benchmark_markdown(values: Mapping[str, Any], sources: Mapping[str, Source], command: str) -> str:
    """Return a benchmark as Markdown.

    Args:
        values: of :func:`benchmark_values`, with ``settings``, the names of the configuration files, and ``protocol``,
            its ``name`` and the published ``method`` with these settings, whose numbers are marked.
        sources: of the published numbers.
        command: what was run.
    """
    columns = [Column(**column) for column in values["columns"]]
    header = ["method", *(f"{column.title()} {_ARROWS[column.metric]}" for column in columns), "evaluated on", "source"]
    rows = [_own_row(entry, columns) for entry in values["here"].values()]
    numbers = {key: number for number, key in enumerate(_cited(values), start=1)}
    rows += _published_rows(values, columns, numbers)
    parts = [
        f"# Benchmark: {values['title']}",
        f"```\n{command}\n```",
        "\n".join(f"- {name}: {value}" for name, value in values["facts"].items()),
        f"Settings: {', '.join(values['settings'])}. Runs, further scores, pictures: [comparison.md](comparison.md).",
        markdown_table(header, rows),
        *_notes(values),
        "\n".join(
            f"{number}. {sources[key].text()} ({STATUSES[status]}): {where}."
            for (key, status, where), number in numbers.items()
        ),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _own_row(entry: Mapping[str, Any], columns: Sequence[Column]) -> list[str]:
    cells = []
    for column in columns:
        score = entry["scores"][column.title()]
        digits = _DIGITS[column.metric]
        cell = NOTHING if score["mean"] is None else f"{score['mean']:.{digits}f}"
        cells.append(cell if score["std"] is None else f"{cell} ± {score['std']:.{digits}f}")
    seeds = max((entry["scores"][column.title()]["n"] for column in columns), default=0)
    return [entry["title"], *cells, "target_val", f"{HERE}, {seeds} seed{'' if seeds == 1 else 's'}"]


Citation = tuple[str, str, str]


def _cited(values: Mapping[str, Any]) -> list[Citation]:
    return list(dict.fromkeys((entry["source"], entry["status"], entry["where"]) for entry in values["published"]))


def _published_rows(
    values: Mapping[str, Any], columns: Sequence[Column], numbers: Mapping[Citation, int]
) -> list[list[str]]:
    """Return a row for each method, split and status."""
    rows: dict[tuple[str, str, str], tuple[dict[int, str], list[int]]] = {}
    for entry in values["published"]:
        cells, cited = rows.setdefault((entry["method"], entry["split"], entry["status"]), ({}, []))
        place = Column(entry["metric"], entry["classes"], entry["over"])
        index = len(columns) - 1 if entry["metric"] == "ece" else columns.index(place)
        cells[index] = str(entry["value"])
        number = numbers[entry["source"], entry["status"], entry["where"]]
        cited.extend([] if number in cited else [number])
    return [
        [
            f"**{method}**" if method == values["protocol"]["method"] else method,
            *(cells.get(k, NOTHING) for k in range(len(columns))),
            split,
            f"{status.replace('_', ' ')} [{', '.join(map(str, cited))}]",
        ]
        for (method, split, status), (cells, cited) in rows.items()
    ]


def _notes(values: Mapping[str, Any]) -> list[str]:
    data = values["data"]
    if not values["published"]:
        return [f"No published numbers are known for {data['name']!r} with this bundle."]
    notes = [
        'Scores here are the mean ± sample standard deviation over seeds, on "target_val". "third party": '
        f"{STATUSES['third_party']}."
    ]
    protocol = values["protocol"]
    if any(entry["method"] == protocol["method"] for entry in values["published"]):
        notes.append(f"Bold: the method whose published settings the runs here have (--protocol {protocol['name']}).")
    elif protocol["name"] != DEFAULT:
        notes.append(f"No published numbers are known of {protocol['method']}, whose settings the runs here have.")
    if values["not_comparable"]:
        notes.append(f"**Not comparable**: {values['not_comparable']}")
    if any(entry["split"] == "test" for entry in values["published"]):
        notes.append(
            'Numbers on "test" are of images whose labels are not public: the owners\' server measured them, and they '
            "are not of the images in target_val."
        )
    failed = [f"{entry['title']}, seed {seed}" for entry in values["here"].values() for seed in entry["failed"]]
    if failed:
        notes.append(f"Runs without results; means are over the other seeds: {'; '.join(failed)}.")
    return notes


def known_tasks(published: Published) -> str:
    """Return the tasks with published numbers as a table."""
    header = ["task", "bundle", "prepared data", "published numbers (%)"]
    rows = []
    for task in published.tasks.values():
        numbers = [
            f"{entry.method} {_TITLES[entry.metric]} {entry.value}"
            + ("" if entry.metric == "ece" else f" ({entry.classes})")
            + ("" if entry.status == "published" else " (third party)")
            for entry in task.results
        ]
        rows.append([task.name, task.bundle, f"{task.data}, {task.target_val} in target_val", "; ".join(numbers)])
    return markdown_table(header, rows)
