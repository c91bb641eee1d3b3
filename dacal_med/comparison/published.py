# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Published numbers by task, with their sources and whether they were seen there: ``published.json``."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from dacal_med.io.errors import InputError
from dacal_med.kinds import is_number, is_whole

FILE = Path(__file__).with_name("published.json")
METRICS = ("miou", "dice", "ece")
STATUSES = {
    "published": "by the method's authors",
    "third_party": "by others than the method's authors; the authors' own table was not seen",
}
OVER = ("pixels", "cases")


@dataclass(frozen=True)
class Source:
    """Where a number comes from.

    Attributes:
        citation: authors, title, place and year.
        arxiv: number there, ``None`` if it is not on arXiv.
    """

    citation: str
    arxiv: str | None

    def text(self) -> str:
        """Return the citation with the arXiv number."""
        return self.citation if self.arxiv is None else f"{self.citation}, arXiv {self.arxiv}"


@dataclass(frozen=True)
class PublishedResult:
    """One number of one method.

    Attributes:
        method: its name.
        metric: one of :data:`METRICS`.
        classes: over how many classes it is a mean, or were predicted.
        over: ``"pixels"`` for a score pooled over them, ``"cases"`` for a mean over cases.
        value: percent.
        split: what was evaluated, e.g. ``"val"``.
        status: one of :data:`STATUSES`.
        source: key among the sources.
        where: the place in it, or who says so.
    """

    method: str
    metric: str
    classes: int
    over: str
    value: float
    split: str
    status: str
    source: str
    where: str


@dataclass(frozen=True)
class Task:
    """What is known of one adaptation task.

    Attributes:
        name: its key.
        title: for reports.
        bundle: folder name of the bundle that runs it.
        data: how the name of its datalist begins, as prepared by ``python -m dacal_med prepare``.
        target_val: how many images ``target_val`` has when it is complete.
        classes: how many classes the labels have where the numbers were measured, background included; of fewer, pixels
            of the others would be ignored.
        results: published numbers.
    """

    name: str
    title: str
    bundle: str
    data: str
    target_val: int
    classes: int
    results: tuple[PublishedResult, ...]


@dataclass(frozen=True)
class Published:
    """All published numbers.

    Attributes:
        sources: by key.
        tasks: by name.
    """

    sources: Mapping[str, Source]
    tasks: Mapping[str, Task]

    def find(self, name: str) -> Task:
        """Return the task called ``name``.

        Raises:
            InputError: if there is none; the message lists those there are.
        """
        if name not in self.tasks:
            close = difflib.get_close_matches(name, self.tasks, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(self.tasks)}"
            raise InputError(f"--task: found {name!r}; {hint}")
        return self.tasks[name]

    def of_bundle(self, bundle: str, data: str) -> Task | None:
        """Return the task of a bundle and a data set: the one whose data it is, or else the bundle's only one.

        Args:
            bundle: its folder's name.
            data: the datalist's name.
        """
        tasks = [task for task in self.tasks.values() if task.bundle == bundle]
        fitting = [task for task in tasks if data.startswith(task.data)]
        if fitting:
            return max(fitting, key=lambda task: len(task.data))
        return tasks[0] if len(tasks) == 1 else None


def load_published(path: str | Path = FILE) -> Published:
    """Read and check a file of published numbers.

    Args:
        path: the file; the one of this package by default.

    Raises:
        InputError: naming the place, if the file is unreadable, a key is missing, unknown or of another kind, or a
            value is impossible.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from error
    _check_keys(str(path), content, ("sources", "tasks"))
    sources = {}
    for key, item in content["sources"].items():
        place = f"{path}: sources: {key}"
        _check_keys(place, item, tuple(f.name for f in fields(Source)))
        _check(place, "citation", item["citation"], _is_text(item["citation"]), "a text")
        known = item["arxiv"] is None or _is_text(item["arxiv"])
        _check(place, "arxiv", item["arxiv"], known, "a number such as 2111.14887, or null")
        sources[key] = Source(**item)
    tasks = {name: _task(f"{path}: {name}", name, item, sources) for name, item in content["tasks"].items()}
    return Published(sources, tasks)


def _task(place: str, name: str, item: Any, sources: Mapping[str, Source]) -> Task:
    _check_keys(place, item, tuple(f.name for f in fields(Task) if f.name != "name"))
    for key in ("title", "bundle", "data"):
        _check(place, key, item[key], _is_text(item[key]), "a text")
    _check(place, "target_val", item["target_val"], is_whole(item["target_val"], 1), "a number of images")
    _check(place, "classes", item["classes"], is_whole(item["classes"], 1), "a number of classes")
    _check(place, "results", item["results"], isinstance(item["results"], list) and item["results"], "a list")
    results = [_result(f"{place}: result {n}", entry, sources) for n, entry in enumerate(item["results"])]
    # ECE is over pixels, whatever the classes: two of them would stand in one cell.
    seen = [
        (r.method, r.metric, *([] if r.metric == "ece" else [str(r.classes)]), r.over, r.split, r.status)
        for r in results
    ]
    for number in seen:
        if seen.count(number) > 1:
            raise InputError(f"{place}: found {', '.join(number)} more than once, wanted each number once")
    return Task(name=name, **{**item, "results": tuple(results)})


def _result(place: str, item: Any, sources: Mapping[str, Source]) -> PublishedResult:
    _check_keys(place, item, tuple(f.name for f in fields(PublishedResult)))
    for key in ("method", "split", "where"):
        _check(place, key, item[key], _is_text(item[key]), "a text")
    for key, known in (("metric", METRICS), ("over", OVER), ("status", tuple(STATUSES)), ("source", tuple(sources))):
        _check(place, key, item[key], item[key] in known, f"one of {', '.join(known)}")
    _check(place, "over", item["over"], item["metric"] != "ece" or item["over"] == "pixels", "pixels for ece")
    _check(place, "classes", item["classes"], is_whole(item["classes"], 1), "a number of classes")
    value = item["value"]
    _check(place, "value", value, is_number(value) and 0 <= value <= 100, "percent, 0 to 100")
    return PublishedResult(**item)


def _check_keys(place: str, item: Any, wanted: Sequence[str]) -> None:
    found = sorted(item) if isinstance(item, dict) else type(item).__name__
    if found != sorted(wanted):
        raise InputError(f"{place}: found {found}, wanted the keys {', '.join(wanted)}")


def _check(place: str, key: str, value: Any, fits: Any, wanted: str) -> None:
    if not fits:
        raise InputError(f"{place}: {key}: found {value!r}, wanted {wanted}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
