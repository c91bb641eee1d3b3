# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a recipe plans before anything is written: cases, each with its patient, its part and how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.preparation.labels import LabelTable

Part = Literal["source", "target_train", "target_val"]
PARTS: tuple[Part, ...] = ("source", "target_train", "target_val")


@dataclass(frozen=True)
class Volume:
    """A volume in memory.

    Attributes:
        array: ``(x, y, z)`` in the order of the affine's columns.
        affine: voxel index to patient millimetres, RAS, ``(4, 4)``.
    """

    array: np.ndarray[Any, Any]
    affine: np.ndarray[Any, Any]


@dataclass(frozen=True)
class Picture:
    """A 2D image in memory.

    Attributes:
        array: ``(rows, columns)`` grey or label values, ``(rows, columns, 3)`` colour; images are uint8, the owner's
            labels of any integer type.
    """

    array: np.ndarray[Any, Any]


Pixels = Volume | Picture


@dataclass(frozen=True)
class Case:
    """One image of the prepared data set.

    Attributes:
        name: unique in the data set; the name of its files.
        patient: whoever must not be in two parts; unique over both domains.
        part: where it goes.
        inputs: the owner's files that determine it, to know on a later run whether they changed; that of the image
            first, that of the label last.
        image: a file to copy as it is (NIfTI, or a picture with its own suffix), or a function that reads the image.
        label: a function that reads the owner's label values on the grid of the image; None in ``target_train``.
        group: what the scores are reported by besides all cases together, such as the weather; None for nothing.
        reference: a picture of the same place under other conditions, copied as it is; None for none.
    """

    name: str
    patient: str
    part: Part
    inputs: tuple[Path, ...]
    image: Path | Callable[[], Pixels]
    label: Callable[[], Pixels] | None = None
    group: str | None = None
    reference: Path | None = None

    @property
    def domain(self) -> Literal["source", "target"]:
        """The domain that the part belongs to."""
        return "source" if self.part == "source" else "target"


@dataclass(frozen=True)
class Plan:
    """Everything about a prepared data set but its voxels.

    Attributes:
        title: the ``name`` in ``datalist.json``.
        tables: label table of each domain; both name the same classes.
        cases: in the order of the datalist.
        split: one or two sentences: how the parts were made, and whose split it is.
        modality: of each domain, such as ``{"source": "CT", "target": "MR"}``; empty to let the datalist guess.
        notes: what a user of the data must know.
        missing: what an incomplete download lacks: names of files or folders by what they are.
        evaluated: whether there must be cases for evaluation.
        unit: what must not be in two parts, where it is not a patient; then ``datalist.json`` names no patients.
    """

    title: str
    tables: dict[Literal["source", "target"], LabelTable]
    cases: tuple[Case, ...]
    split: str
    modality: dict[str, str]
    notes: tuple[str, ...] = ()
    evaluated: bool = True
    unit: str = "patient"
    missing: Mapping[str, Sequence[str]] = field(default_factory=dict)


def check_plan(plan: Plan) -> None:
    """Check what no recipe may get wrong, whatever the folder held.

    Raises:
        InputError: a patient is in two parts, a name is used twice, a part that needs cases or labels has none.
    """
    parts: dict[str, Part] = {}
    names: set[str] = set()
    for case in plan.cases:
        earlier = parts.setdefault(case.patient, case.part)
        if earlier != case.part:
            raise InputError(
                f"{plan.unit} {case.patient}: found in both '{earlier}' and '{case.part}' (case {case.name}); "
                f"wanted every {plan.unit} in one part."
            )
        if case.name in names:
            raise InputError(f"case {case.name}: found twice; wanted a name for every case.")
        names.add(case.name)
        if (case.label is None) != (case.part == "target_train"):
            found = "no label" if case.label is None else "a label"
            raise InputError(f"case {case.name}: found {found} in '{case.part}'; wanted labels everywhere else.")
    for part in PARTS:
        if part not in parts.values() and (plan.evaluated or part != "target_val"):
            raise InputError(f"{plan.title}: found no case for '{part}'; wanted at least one.")
    if plan.tables["source"].names != plan.tables["target"].names:
        raise InputError(f"{plan.title}: the label tables of source and target name different classes.")


def labelled(part: Part, read: Callable[[], Pixels]) -> Callable[[], Pixels] | None:
    """Return the label reader where labels are wanted: everywhere but in ``target_train``."""
    return None if part == "target_train" else read


def in_part(cases: Sequence[Case], part: Part) -> list[Case]:
    """Return the cases of one part, in order."""
    return [case for case in cases if case.part == part]
