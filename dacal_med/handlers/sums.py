# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The sums of an evaluation as a file, from which every score and plot can be derived again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dacal_med.core.scores import summarise_run
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.weights import load_safely
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path, write_bytes


@dataclass(frozen=True)
class Sums:
    """The sums of an evaluation, and what is needed to make scores of them.

    Attributes:
        cases: in the order of the data.
        class_names: names by class.
        groups: the group of each case, ``None`` for cases in none.
        class_subsets: class names by subset, for further means.
        regions: class names by region, whose union is scored as one.
    """

    cases: list[SegmentationStatistics]
    class_names: tuple[str, ...]
    groups: list[str | None]
    class_subsets: dict[str, list[str]] = field(default_factory=dict)
    regions: dict[str, list[str]] = field(default_factory=dict)

    def summarise(self) -> dict[str, Any]:
        """Return every score, as of :func:`dacal_med.core.scores.summarise_run`."""
        return summarise_run(self.cases, self.class_names, self.groups, self.class_subsets, self.regions)


def save_sums(
    path: str | Path,
    cases: Sequence[SegmentationStatistics],
    class_names: Sequence[str],
    groups: Sequence[str | None] | None = None,
    class_subsets: Mapping[str, Sequence[str]] | None = None,
    regions: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Write the sums of each case, whole or not at all.

    Args:
        path: the file, e.g. ``statistics.pt``.
        cases: in the order of the data, at least one, all with the same settings.
        class_names: names by class.
        groups: the group of each case; ``None`` where no case has one.
        class_subsets: class names by subset.
        regions: class names by region.

    Raises:
        InputError: if it cannot be written.
    """
    content = {
        "class_names": list(class_names),
        "settings": cases[0].settings(),
        "cases": [{name: value.cpu() for name, value in case.state_dict().items()} for case in cases],
        "groups": [None] * len(cases) if groups is None else list(groups),
        "class_subsets": {name: list(members) for name, members in (class_subsets or {}).items()},
        "regions": {name: list(members) for name, members in (regions or {}).items()},
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_sums(path: str | Path) -> Sums:
    """Read what :func:`save_sums` wrote, with ``weights_only=True``.

    Args:
        path: the file; one without groups, subsets and regions, as earlier versions wrote it, has none.

    Raises:
        InputError: if it is missing, unreadable or something else.
    """
    path = given_path(path, "statistics")
    if not path.is_file():
        raise InputError(f"no statistics at {path}")
    content = load_safely(path, "file of statistics")
    try:
        cases = []
        for state in content["cases"]:
            case = SegmentationStatistics(**content["settings"])
            case.load_state_dict(state)
            cases.append(case)
        names = tuple(content["class_names"])
        groups = list(content.get("groups", [None] * len(cases)))
        subsets, regions = (
            {name: list(members) for name, members in dict(content.get(key, {})).items()}
            for key in ("class_subsets", "regions")
        )
        if not cases or len(names) != cases[0].num_classes or not all(isinstance(name, str) for name in names):
            raise ValueError(f"found {len(cases)} case(s) and {len(names)} class name(s)")
        if len(groups) != len(cases) or not all(group is None or isinstance(group, str) for group in groups):
            raise ValueError(f"found {len(groups)} group(s) of {len(cases)} case(s), wanted a name or None for each")
        named = {str(member) for part in (subsets, regions) for members in part.values() for member in members}
        if not named <= set(names):
            raise ValueError(f"found subsets or regions of the unknown class(es) {sorted(named - set(names))}")
        return Sums(cases, names, groups, subsets, regions)
    except Exception as error:  # a foreign file may hold anything anywhere
        told = f"{type(error).__name__}: {str(error)[:200]}"
        raise InputError(f"{path} is not a file of statistics: {told}") from error
