# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From the result folders of methods x seeds to one comparison: means, spreads and paired differences.

Differences to the reference are paired (same seed, same case) with two-sided 95 % intervals of Student's t: over seeds
for the scores pooled over voxels, and over cases for the scores of each case averaged over seeds. What does not exist
is ``None`` throughout, never 0, 1 or NaN.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from dacal_med.comparison.methods import Method
from dacal_med.core.scores import SCORES, ReliabilityTable, pool, reliability_table
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.handlers.sums import load_sums
from dacal_med.io.errors import InputError

METRICS, SUMS = "metrics.json", "statistics.pt"
CONFIDENCE = 0.95

Array = NDArray[np.float64]


def run_folder(folder: Path, method: str, seed: int) -> Path:
    """Return where the results of one method and seed are, below the folder of the comparison."""
    return folder / "runs" / method / f"seed_{seed}"


def collect(
    folder: Path,
    methods: Sequence[Method],
    seeds: Sequence[int],
    failures: Mapping[tuple[str, int], str],
    reference: str,
) -> dict[str, Any]:
    """Gather the results of all runs.

    Args:
        folder: of the comparison; results are below :func:`run_folder`.
        methods: what is compared, names unique.
        seeds: the seeds that each method was to run with.
        failures: why a run has no result, by method and seed; what lies in its folder is not looked at. A run without
            result and reason has failed too.
        reference: name of the method that differences are taken to.

    Returns:
        A mapping ready for JSON, with ``S`` a summary as of :func:`dacal_med.core.scores.summarise`:

        - ``methods``: by name ``title``, ``oracle``, ``base``, ``seeds`` (``{"0": S}``), ``mean`` and ``std`` (sample
          standard deviation, ``None`` for fewer than two) with the structure of ``S`` over the seeds in which a number
          exists, ``seconds`` and ``peak_memory_mib`` (each ``{"mean", "std"}``), ``failed`` (``{"1": message}``);
        - ``seeds``, ``class_names``, ``background`` (the class that means leave out, ``None`` for none), ``cases`` (how
          many), ``reference`` (a name);
        - ``paired``: by method and score of :data:`~dacal_med.core.scores.SCORES` ``difference`` (method minus
          reference, over the ``n`` seeds that both have), ``low`` and ``high`` (``None`` for ``n < 2``) and
          ``relative`` (the difference as a fraction of the reference's mean over those seeds);
        - ``per_case_paired``: the same over the ``n`` cases in which the score exists in every common seed of both;
        - ``notes``: sentences about what is missing.

    Raises:
        InputError: if the reference is none of the methods, a result is unreadable, or two runs were not measured on
            the same cases.
    """
    if reference not in {method.name for method in methods}:
        raise InputError(
            f"reference: found {reference!r}, wanted one of the methods: {', '.join(m.name for m in methods)}"
        )
    entries: dict[str, Any] = {}
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    measured = _Cases()
    for method in methods:
        runs[method.name], failed = {}, {}
        for seed in seeds:
            place = run_folder(folder, method.name, seed)
            if (method.name, seed) in failures:
                failed[str(seed)] = failures[method.name, seed]
            elif not (place / METRICS).is_file():
                failed[str(seed)] = f"no {METRICS} in {place}"
            else:
                runs[method.name][seed] = read_metrics(place / METRICS)
                measured.add(method.name, seed, place / SUMS)
        entries[method.name] = _entry(method, runs[method.name], failed)
    result: dict[str, Any] = {
        "methods": entries,
        "seeds": list(seeds),
        "class_names": list(measured.class_names),
        "background": measured.background,
        "cases": measured.number,
        "reference": reference,
        "paired": {},
        "per_case_paired": {},
        "notes": [],
    }
    if not runs[reference]:
        result["notes"].append(f"{entries[reference]['title']}, the reference, has no results: no paired differences.")
        return result
    for method in methods:
        if method.name != reference:
            common = sorted(set(runs[method.name]) & set(runs[reference]))
            result["paired"][method.name] = _paired_over_seeds(runs[method.name], runs[reference], common)
            result["per_case_paired"][method.name] = measured.paired(method.name, reference, common)
    return result


def pooled_tables(folder: Path, result: Mapping[str, Any], region: str = "foreground") -> dict[str, ReliabilityTable]:
    """Return the reliability table of each method that has results, pooled over its cases and seeds.

    Args:
        folder: of the comparison.
        result: of :func:`collect`.
        region: ``"all"``, ``"foreground"`` or ``"boundary"``.

    Raises:
        InputError: if the statistics of a run are missing or unreadable.
    """
    tables = {}
    for name, entry in result["methods"].items():
        cases = [
            case for seed in entry["seeds"] for case in load_sums(run_folder(folder, name, int(seed)) / SUMS).cases
        ]
        if cases:
            tables[name] = reliability_table(pool(cases), region=region)
    return tables


def table_order(result: Mapping[str, Any]) -> list[str]:
    """Return the names of all methods as tables list them.

    Trained methods come first, in the order given, each followed by the post-hoc calibrators that sit on it; then
    calibrators whose base is not compared; oracles last.
    """
    methods = result["methods"]
    trained = [name for name, entry in methods.items() if entry["base"] is None]
    families = [[name, *(other for other, entry in methods.items() if entry["base"] == name)] for name in trained]
    orphans = [name for name, entry in methods.items() if entry["base"] is not None and entry["base"] not in trained]
    return sorted([name for family in [*families, orphans] for name in family], key=lambda n: methods[n]["oracle"])


def read_metrics(path: Path) -> dict[str, Any]:
    """Read the scores, time and memory of one run.

    Raises:
        InputError: if the file is no JSON, holds NaN or lacks one of them.
    """
    try:
        content = json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from error
    wanted = ("after", "seconds", "peak_memory_mib")
    if not isinstance(content, dict) or any(key not in content for key in wanted):
        raise InputError(f"{path}: found {_kind(content)}, wanted the keys {', '.join(wanted)}")
    if not isinstance(content["after"], dict):
        raise InputError(f"{path}: after: found {_kind(content['after'])}, wanted scores by name")
    return content


def combine(values: Sequence[Any], leaf: Callable[[list[float]], float | None]) -> Any:
    """Return nested mappings of numbers as one, each number ``leaf`` of those that exist in its place."""
    nested = [value for value in values if isinstance(value, Mapping)]
    if nested:
        keys = dict.fromkeys(key for value in nested for key in value)
        return {key: combine([value.get(key) for value in nested], leaf) for key in keys}
    return leaf([float(value) for value in values if value is not None])


def mean(values: Sequence[float]) -> float | None:
    """Return the mean, ``None`` if there is no value."""
    return fmean(values) if values else None


def spread(values: Sequence[float]) -> float | None:
    """Return the sample standard deviation, ``None`` for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def paired_difference(values: Array, reference: Array) -> dict[str, float | int | None]:
    """Return the mean difference of pairs with its two-sided 95 % interval of Student's t.

    Args:
        values: ``(n,)``, finite.
        reference: ``(n,)``, finite.

    Returns:
        ``difference``, ``low``, ``high`` (``None`` for ``n < 2``), ``relative`` (the difference as a fraction of the
        reference's mean, ``None`` if that is 0) and ``n``; all ``None`` for ``n = 0``.
    """
    differences = values - reference
    n = len(differences)
    if n == 0:
        return {"difference": None, "low": None, "high": None, "relative": None, "n": 0}
    centre, base = float(differences.mean()), float(reference.mean())
    half = None
    if n > 1:
        half = float(stats.t.ppf((1.0 + CONFIDENCE) / 2.0, n - 1) * stats.sem(differences))
    return {
        "difference": centre,
        "low": None if half is None else centre - half,
        "high": None if half is None else centre + half,
        "relative": centre / base if base else None,
        "n": n,
    }


class _Cases:
    """The scores of each case of each run, all measured on the same cases."""

    def __init__(self) -> None:
        self.scores: dict[tuple[str, int], dict[str, Array]] = {}
        self.class_names: tuple[str, ...] = ()
        self.groups: list[str | None] = []
        self.number = 0
        self._first: tuple[Path, list[SegmentationStatistics]] | None = None

    @property
    def background(self) -> str | None:
        """The class that is not foreground, ``None`` where every class counts or nothing was added."""
        index = None if self._first is None else self._first[1][0].background
        return None if index is None else self.class_names[index]

    def add(self, method: str, seed: int, path: Path) -> None:
        """Read the statistics of a run.

        Raises:
            InputError: if they are unreadable or of other cases than those before.
        """
        sums = load_sums(path)
        cases, names = sums.cases, sums.class_names
        if self._first is None:
            self._first, self.class_names, self.number = (path, cases), names, len(cases)
            self.groups = sums.groups
        self._check(path, cases, names, sums.groups)
        self.scores[method, seed] = {
            name: np.array([score(case) for case in cases], dtype=np.float64) for name, score in SCORES.items()
        }

    def _check(
        self,
        path: Path,
        cases: Sequence[SegmentationStatistics],
        names: tuple[str, ...],
        groups: Sequence[str | None],
    ) -> None:
        assert self._first is not None
        first_path, first = self._first
        advice = f"in {first_path}; were both measured on the same cases?"
        for what, found, wanted in (
            ("cases", len(cases), len(first)),
            ("classes", names, self.class_names),
            ("groups", groups, self.groups),
            ("settings", _settings(cases), _settings(first)),
        ):
            if found != wanted:
                raise InputError(f"{path}: found {what} {found}, wanted {wanted} as {advice}")
        for index, (case, other) in enumerate(zip(cases, first, strict=True)):
            # How often each class is the truth does not depend on the prediction: it tells cases apart.
            if not torch.equal(case.voxel_count[0], other.voxel_count[0]):
                raise InputError(f"{path}: case {index} has other true labels than {advice}")

    def paired(self, method: str, reference: str, seeds: Sequence[int]) -> dict[str, Any]:
        """Return the difference of two methods over cases, each case averaged over ``seeds``."""
        result = {}
        for name in SCORES:
            # (seeds, cases); a mean with NaN is NaN, so that a case counts only where every seed has the score.
            mine, theirs = (
                np.mean([self.scores[m, seed][name] for seed in seeds], axis=0) if seeds else np.empty(0)
                for m in (method, reference)
            )
            kept = np.isfinite(mine) & np.isfinite(theirs)
            result[name] = paired_difference(mine[kept], theirs[kept])
        return result


def _settings(cases: Sequence[SegmentationStatistics]) -> list[dict[str, int | None]]:
    return [case.settings() for case in cases[:1]]


def _entry(method: Method, runs: Mapping[int, Mapping[str, Any]], failed: Mapping[str, str]) -> dict[str, Any]:
    after = [run["after"] for run in runs.values()]
    costs = {
        key: {"mean": combine(values, mean), "std": combine(values, spread)}
        for key in ("seconds", "peak_memory_mib")
        for values in [[run[key] for run in runs.values()]]
    }
    return {
        "title": method.title,
        "oracle": method.oracle,
        "base": method.base,
        "seeds": {str(seed): run["after"] for seed, run in runs.items()},
        "mean": combine(after, mean),
        "std": combine(after, spread),
        **costs,
        "failed": dict(failed),
    }


def _paired_over_seeds(
    runs: Mapping[int, Mapping[str, Any]], reference: Mapping[int, Mapping[str, Any]], seeds: Sequence[int]
) -> dict[str, Any]:
    result = {}
    for name in SCORES:
        pairs = [(runs[seed]["after"].get(name), reference[seed]["after"].get(name)) for seed in seeds]
        existing = np.array([pair for pair in pairs if None not in pair], dtype=np.float64).reshape(-1, 2)
        result[name] = paired_difference(existing[:, 0], existing[:, 1])
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"found {name}, wanted a number or null")


def _kind(value: object) -> str:
    return f"the keys {', '.join(map(str, value))}" if isinstance(value, dict) else type(value).__name__
