# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Street scenes, 2D: GTA5 or SYNTHIA to Cityscapes, Cityscapes to ACDC or Dark Zurich, and from city to city.

Images are copied as they are; labels become train ids of Cityscapes, 0 to 18, and 255 for what is ignored. Splits are
the owners'. Classes and parts are those of DAFormer (Hoyer, Dai and Van Gool, CVPR 2022, arXiv 2111.14887) and the
works that it compares with.

Not confirmed, since no owner's complete download was at hand: that every label of GTA5 but two has the size of its
image (if not, it is refused), and whether SYNTHIA's labels have two channels or three (both are read).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

from dacal_med.data.street_labels import TRAIN_NAMES
from dacal_med.preparation.cases import Case, Part, Picture, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.recipe import Choice, Recipe, Request, Role
from dacal_med.preparation.sets import street_owners as owners
from dacal_med.preparation.sets.street_owners import Frame
from dacal_med.preparation.sets.street_tables import (
    SYNTHIA_13,
    SYNTHIA_16,
    check_sample,
    read_gta_labels,
    read_label_ids,
    read_synthia_labels,
    street_table,
    synthia_table,
)
from dacal_med.preparation.split import split_patients

Read = Callable[[Path], Picture]
MODALITY = {"source": "RGB", "target": "RGB"}
CLASSES = {"16": SYNTHIA_16, "13": SYNTHIA_13, "19": TRAIN_NAMES}
_HALVES: dict[Part, Fraction] = {"source": Fraction(1, 2), "target_train": Fraction(1, 2)}


def _cases(frames: Sequence[Frame], part: Part, read: Read, table: LabelTable, what: str) -> list[Case]:
    """Make the cases of a part, after a look at some of its labels."""
    check_sample([(frame.image, frame.label) for frame in frames if frame.label is not None], read, table, what)
    cases = []
    for frame in frames:
        inputs = (frame.image, *(path for path in (frame.reference, frame.label) if path is not None))
        label = labelled(part, partial(read, frame.label)) if frame.label is not None else None
        cases.append(Case(frame.name, frame.place, part, inputs, frame.image, label, frame.condition, frame.reference))
    return cases


def _cityscapes_target(folder: Path, request: Request, table: LabelTable) -> list[Case]:
    train = owners.cityscapes(folder, "train", request, labelled=False)
    val = owners.cityscapes(folder, "val", request, labelled=True)
    return [
        *_cases(train, "target_train", read_label_ids, table, "Cityscapes"),
        *_cases(val, "target_val", read_label_ids, table, "Cityscapes"),
    ]


def _gta(request: Request) -> Plan:
    source, target = street_table(plates=True), street_table()
    cases = _cases(owners.gta5(request.folders["source"], request), "source", read_gta_labels, source, "GTA5")
    cases += _cityscapes_target(request.folders["target"], request, target)
    split = "All of GTA5 is the source. " + CITYSCAPES_SPLIT
    return _plan("GTA5 to Cityscapes", (source, target), cases, split, GTA5_NOTE)


def _synthia(request: Request) -> Plan:
    classes = CLASSES[request.choices["classes"]]
    source, target = synthia_table(classes), street_table(classes)
    frames = owners.synthia(request.folders["source"], request)
    cases = _cases(frames, "source", read_synthia_labels, source, "SYNTHIA")
    cases += _cityscapes_target(request.folders["target"], request, target)
    title = f"SYNTHIA to Cityscapes, {len(classes)} classes"
    return _plan(title, (source, target), cases, "All of SYNTHIA is the source. " + CITYSCAPES_SPLIT, SYNTHIA_NOTE)


def _acdc(request: Request) -> Plan:
    table = street_table()
    folder, references = request.folders["target"], request.choices["references"] == "copy"
    train = owners.acdc(folder, "train", request, labelled=False, references=references)
    val = owners.acdc(folder, "val", request, labelled=True, references=references)
    cases = _cityscapes_source(request, table)
    cases += _cases(train, "target_train", read_label_ids, table, "ACDC")
    cases += _cases(val, "target_val", read_label_ids, table, "ACDC")
    plan = _plan("Cityscapes to ACDC", (table, table), cases, "Cityscapes train is the source. " + ACDC_SPLIT)
    return replace(plan, missing=owners.acdc_lacks({"train": train, "val": val}, references=references))


def _dark_zurich(request: Request) -> Plan:
    table, folder = street_table(), request.folders["target"]
    cases = _cityscapes_source(request, table)
    train, val = (owners.dark_zurich(folder, split, request) for split in ("train", "val"))
    cases += _cases(train, "target_train", read_label_ids, table, "Dark Zurich")
    cases += _cases(val, "target_val", read_label_ids, table, "Dark Zurich")
    split = "Cityscapes train is the source. " + DARK_ZURICH_SPLIT
    return _plan("Cityscapes to Dark Zurich", (table, table), cases, split)


def _cityscapes_source(request: Request, table: LabelTable) -> list[Case]:
    frames = owners.cityscapes(request.folders["source"], "train", request, labelled=True)
    return _cases(frames, "source", read_label_ids, table, "Cityscapes")


def _cities(request: Request) -> Plan:
    table, folder = street_table(), request.folders["data"]
    train = owners.cityscapes(folder, "train", request, labelled=True)
    parts = split_patients([frame.place for frame in train], _HALVES, request.seed)
    cases: list[Case] = []
    for part in _HALVES:
        chosen = [frame for frame in train if parts[frame.place] == part]
        cases += _cases(chosen, part, read_label_ids, table, "Cityscapes")
    val = owners.cityscapes(folder, "val", request, labelled=True)
    cases += _cases(val, "target_val", read_label_ids, table, "Cityscapes")
    return _plan("Cityscapes, city to city", (table, table), cases, f"{CITIES_SPLIT} (seed {request.seed}).")


def _plan(title: str, tables: tuple[LabelTable, LabelTable], cases: Sequence[Case], split: str, *notes: str) -> Plan:
    return Plan(
        title=title,
        tables={"source": tables[0], "target": tables[1]},
        cases=tuple(cases),
        split=split,
        modality=dict(MODALITY),
        notes=("Label values are train ids of Cityscapes; images keep their size.", *notes),
        unit="place",
    )


CITYSCAPES_SPLIT = "The owners' train (without labels) and val (for evaluation) of Cityscapes are the target."
ACDC_SPLIT = (
    "The owners' train (without labels) and val (for evaluation) of ACDC are the target; `group` in datalist.json is "
    "the condition."
)
DARK_ZURICH_SPLIT = "The owners' nights of train (without labels) and of val (for evaluation) are the target."
CITIES_SPLIT = (
    "Half of the cities of the owners' train are the source, the others the unlabelled target, at random with a seed; "
    "the owners' val is for evaluation"
)
GTA5_NOTE = (
    f"Of GTA5, {' and '.join(sorted(owners.GTA5_UNFIT))} are left out where the sizes of image and label differ; any "
    "other such pair is an error."
)
SYNTHIA_NOTE = (
    "With 16 or 13 classes the others are ignored in both domains. With 19 all classes of Cityscapes are evaluated, "
    "three of which SYNTHIA never shows: DAFormer's protocol, whose mean over 16 is 19/16 of the mean over 19."
)
_NINETEEN = "the 19 classes of Cityscapes, 255 for what is ignored"
_GTA5_LAYOUT = "images/00001.png ... and labels/00001.png ... (24966 pairs, the ten parts unpacked into one folder)"
_SYNTHIA_LAYOUT = "RAND_CITYSCAPES with RGB/0000000.png ... and GT/LABELS/0000000.png ... (9400 pairs, 16-bit labels)"
_CITYSCAPES_SOURCE = (
    "leftImg8bit/train/<city>/*_leftImg8bit.png and gtFine/train/<city>/*_gtFine_labelIds.png (2975 pairs)"
)
_CITYSCAPES_TARGET = (
    "leftImg8bit/{train,val}/<city>/*_leftImg8bit.png (2975 and 500) and gtFine/val/<city>/*_gtFine_labelIds.png"
)
_ACDC_LAYOUT = (
    "rgb_anon/{fog,night,rain,snow}/{train,val}/<recording>/*_rgb_anon.png (1600 and 406), the reference frames "
    "{train,val}_ref/<recording>/*_rgb_ref_anon.png beside them, and gt/<condition>/val/<recording>/*_gt_labelIds.png"
)
_DARK_ZURICH_LAYOUT = (
    "rgb_anon/{train,val}/night/<recording>/*_rgb_anon.png (2416 and 50) and gt/val/night/<recording>/*_gt_labelIds.png"
)
_CITYSCAPES_SOURCE_ROLE = Role("source", (owners.CITYSCAPES,), _CITYSCAPES_SOURCE)
_CITYSCAPES_TARGET_ROLE = Role("target", (owners.CITYSCAPES,), _CITYSCAPES_TARGET)
RECIPES = (
    Recipe(
        name="gta2cityscapes",
        title="street scenes, 2D, GTA5 to Cityscapes",
        roles=(Role("source", (owners.GTA5,), _GTA5_LAYOUT), _CITYSCAPES_TARGET_ROLE),
        plan=_gta,
        labels=_NINETEEN,
        split="the owners' train and val of Cityscapes",
        script="prepare_gta5.py",
    ),
    Recipe(
        name="synthia2cityscapes",
        title="street scenes, 2D, SYNTHIA to Cityscapes",
        roles=(Role("source", (owners.SYNTHIA,), _SYNTHIA_LAYOUT), _CITYSCAPES_TARGET_ROLE),
        plan=_synthia,
        labels="16 or 13 classes of Cityscapes, 255 for what is ignored",
        split="the owners' train and val of Cityscapes",
        choices=(
            Choice(
                "classes",
                tuple(CLASSES),
                "16",
                "16: without terrain, truck, train; 13: also without wall, fence, pole; 19: all, as DAFormer evaluates",
            ),
        ),
        script="prepare_synthia.py",
    ),
    Recipe(
        name="cityscapes2acdc",
        title="street scenes, 2D, Cityscapes to ACDC's fog, night, rain and snow",
        roles=(_CITYSCAPES_SOURCE_ROLE, Role("target", (owners.ACDC,), _ACDC_LAYOUT)),
        plan=_acdc,
        labels=_NINETEEN,
        split="the owners' train and val of ACDC",
        choices=(
            Choice(
                "references", ("copy", "none"), "copy", "whether the reference frames in good conditions are copied"
            ),
        ),
        script="prepare_acdc.py",
    ),
    Recipe(
        name="cityscapes2darkzurich",
        title="street scenes, 2D, Cityscapes to Dark Zurich at night",
        roles=(_CITYSCAPES_SOURCE_ROLE, Role("target", (owners.DARK_ZURICH,), _DARK_ZURICH_LAYOUT)),
        plan=_dark_zurich,
        labels=_NINETEEN,
        split="the owners' train and val of Dark Zurich, nights alone",
        script="prepare_darkzurich.py",
    ),
    Recipe(
        name="cityscapes_city2city",
        title="street scenes, 2D, some cities of Cityscapes to others, without a domain gap",
        roles=(Role("data", (owners.CITYSCAPES,), f"{_CITYSCAPES_SOURCE}, and the 500 pairs of val likewise"),),
        plan=_cities,
        labels=_NINETEEN,
        split="by city, at random with a seed: half of train without labels; the owners' val for evaluation",
        script="prepare_cityscapes.py",
    ),
)
