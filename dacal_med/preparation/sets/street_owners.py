# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Folders of street scenes as their owners ship them: GTA5, SYNTHIA, Cityscapes, ACDC, Dark Zurich.

Each function lists one of them, checks it against the numbers that its owners publish, and reads a few labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Literal

from dacal_med.io.errors import InputError
from dacal_med.io.reading import read_header
from dacal_med.preparation import folders
from dacal_med.preparation.recipe import Owner, Request

GTA5 = Owner(
    name="GTA5 (Playing for Data)",
    url="https://download.visinf.tu-darmstadt.de/data/from_games/",
    licence="for research and education, as stated by the owners; see there",
    citation="Richter, Vineet, Roth and Koltun, Playing for Data: Ground Truth from Computer Games, ECCV 2016, "
    "doi 10.1007/978-3-319-46475-6_7",
)
SYNTHIA = Owner(
    name="SYNTHIA-RAND-CITYSCAPES",
    url="https://synthia-dataset.net/",
    licence="for non-commercial use (CC BY-NC-SA 3.0, not confirmed); see there",
    citation="Ros, Sellart, Materzynska, Vazquez and Lopez, The SYNTHIA Dataset, CVPR 2016, doi 10.1109/CVPR.2016.352",
)
CITYSCAPES = Owner(
    name="Cityscapes",
    url="https://www.cityscapes-dataset.com/",
    licence="for non-commercial use, after registration; see there",
    citation="Cordts et al., The Cityscapes Dataset for Semantic Urban Scene Understanding, CVPR 2016, "
    "doi 10.1109/CVPR.2016.350",
)
ACDC = Owner(
    name="ACDC (Adverse Conditions Dataset with Correspondences)",
    url="https://acdc.vision.ee.ethz.ch/",
    licence="for non-commercial use, after registration; see there",
    citation="Sakaridis, Dai and Van Gool, ACDC: The Adverse Conditions Dataset with Correspondences for Semantic "
    "Driving Scene Understanding, ICCV 2021, doi 10.1109/ICCV48922.2021.01059",
)
DARK_ZURICH = Owner(
    name="Dark Zurich",
    url="https://www.trace.ethz.ch/publications/2019/GCMA_UIoU/",
    licence="for non-commercial use; see there",
    citation="Sakaridis, Dai and Van Gool, Guided Curriculum Model Adaptation and Uncertainty-Aware Evaluation for "
    "Semantic Nighttime Image Segmentation, ICCV 2019, doi 10.1109/ICCV.2019.00747",
)
GTA5_IMAGES, SYNTHIA_IMAGES = 24966, 9400
# Public code of several groups leaves these out as invalid; they are left out where image and label differ in size.
GTA5_UNFIT = frozenset({"15188", "17705"})
CITYSCAPES_IMAGES = {"train": 2975, "val": 500}
CONDITIONS = ("fog", "night", "rain", "snow")
ACDC_IMAGES = {
    **{(condition, "train"): 400 for condition in CONDITIONS},
    **{(condition, "val"): 106 if condition == "night" else 100 for condition in CONDITIONS},
}
DARK_ZURICH_IMAGES = {"train": 2416, "val": 50}
Split = Literal["train", "val"]
_REFERENCE = "_rgb_ref_anon.png"


@dataclass(frozen=True)
class Frame:
    """An image of a street.

    Attributes:
        name: unique among all data sets.
        place: the city, where the owners name it.
        image: file of the image.
        label: file of the label; None where none is wanted.
        condition: weather or time of day, where the owners name it.
        reference: picture of the same place in good conditions, where there is one.
    """

    name: str
    place: str
    image: Path
    label: Path | None = None
    condition: str | None = None
    reference: Path | None = None


def gta5(folder: Path, request: Request) -> list[Frame]:
    """List GTA5: ``images/00001.png`` and ``labels/00001.png``, the ten parts in one folder."""
    root = folders.find_root(folder, ("images", "labels"), GTA5.name)
    images = folders.matching(root / "images", r"(\d{5})\.png")
    labels = folders.matching(root / "labels", r"(\d{5})\.png")
    folders.require_same(images, labels, root, "image")
    folders.require_count(len(images), GTA5_IMAGES, root, "image(s)", partial=request.partial)
    for key in GTA5_UNFIT & images.keys():
        if read_header(images[key]).shape != read_header(labels[key]).shape:
            del images[key]
    return [Frame(f"gta5_{key}", f"gta5_{key}", images[key], labels[key]) for key in images]


def synthia(folder: Path, request: Request) -> list[Frame]:
    """List SYNTHIA-RAND-CITYSCAPES: ``RGB/0000000.png`` and ``GT/LABELS/0000000.png``."""
    root = folders.find_root(folder, ("RGB", "GT/LABELS"), SYNTHIA.name)
    images = folders.matching(root / "RGB", r"(\d{7})\.png")
    labels = folders.matching(root / "GT" / "LABELS", r"(\d{7})\.png")
    folders.require_same(images, labels, root, "image")
    folders.require_count(len(images), SYNTHIA_IMAGES, root, "image(s)", partial=request.partial)
    return [Frame(f"synthia_{key}", f"synthia_{key}", images[key], labels[key]) for key in images]


def cityscapes(folder: Path, split: Split, request: Request, *, labelled: bool) -> list[Frame]:
    """List a part of Cityscapes: ``leftImg8bit/<split>/<city>`` and, where labels are wanted, ``gtFine``."""
    root = folders.find_root(folder, (f"leftImg8bit/{split}",), CITYSCAPES.name) / "leftImg8bit" / split
    images = _in_places(root, r"([a-z-]+_\d{6}_\d{6})_leftImg8bit\.png")
    folders.require_count(len(images), CITYSCAPES_IMAGES[split], root, "image(s)", partial=request.partial)
    labels: dict[str, Path] = {}
    if labelled:
        truth = folders.find_root(folder, (f"gtFine/{split}",), f"{CITYSCAPES.name} labels") / "gtFine" / split
        labels = _labels(truth, images, "_gtFine_labelIds.png")
    return [Frame(key, image.parent.name, image, labels.get(key)) for key, image in images.items()]


def acdc(folder: Path, split: Split, request: Request, *, labelled: bool, references: bool) -> list[Frame]:
    """List a part of ACDC: ``rgb_anon/<condition>/<split>/<recording>``, with ``gt`` and ``<split>_ref`` as wanted."""
    root = folders.find_root(folder, ("rgb_anon",), ACDC.name)
    found: list[Frame] = []
    for condition in CONDITIONS:
        place = root / "rgb_anon" / condition / split
        if request.partial and not place.is_dir():
            continue
        images = _in_places(place, r"(\w+_frame_\d+)_rgb_anon\.png")
        folders.require_count(len(images), ACDC_IMAGES[condition, split], place, "image(s)", partial=request.partial)
        labels: dict[str, Path] = {}
        if labelled:
            truth = folders.find_root(folder, (f"gt/{condition}/{split}",), f"{ACDC.name} labels")
            labels = _labels(truth / "gt" / condition / split, images, "_gt_labelIds.png")
        others: dict[str, Path] = {}
        if references:
            others = _references(root / "rgb_anon" / condition / f"{split}_ref", images, request)
        found += [
            Frame(f"acdc_{condition}_{key}", key, image, labels.get(key), condition, others.get(key))
            for key, image in images.items()
        ]
    return found


def acdc_lacks(parts: Mapping[Split, Sequence[Frame]], *, references: bool) -> dict[str, list[str]]:
    """Return which folders and, where wanted, reference frames an incomplete download of ACDC lacks."""
    folders_lacking = [
        f"rgb_anon/{condition}/{split}"
        for split, frames in parts.items()
        for condition in CONDITIONS
        if condition not in {frame.condition for frame in frames}
    ]
    frames_lacking = [
        f"{frame.condition}/{split}_ref/{frame.image.parent.name}/{frame.place}{_REFERENCE}"
        for split, frames in parts.items()
        for frame in frames
        if references and frame.reference is None
    ]
    found = {"folders of ACDC": folders_lacking, "reference frames of ACDC": frames_lacking}
    return {what: names for what, names in found.items() if names}


def dark_zurich(folder: Path, split: Split, request: Request) -> list[Frame]:
    """List the nights of Dark Zurich: ``rgb_anon/<split>/night/<recording>``, and ``gt`` of the part "val"."""
    root = folders.find_root(folder, (f"rgb_anon/{split}/night",), DARK_ZURICH.name) / "rgb_anon" / split / "night"
    images = _in_places(root, r"(\w+_frame_\d+)_rgb_anon\.png")
    folders.require_count(len(images), DARK_ZURICH_IMAGES[split], root, "image(s)", partial=request.partial)
    labels: dict[str, Path] = {}
    if split == "val":
        truth = folders.find_root(folder, ("gt/val/night",), f"{DARK_ZURICH.name} labels") / "gt" / "val" / "night"
        labels = _labels(truth, images, "_gt_labelIds.png")
    return [Frame(f"dark_zurich_{key}", key, image, labels.get(key)) for key, image in images.items()]


def _in_places(folder: Path, pattern: str) -> dict[str, Path]:
    """Files in the folders of a folder (cities, recordings) whose names match, by key."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted one with a folder for each city or recording.")
    found: dict[str, Path] = {}
    for place in folders.entries(folder):
        if place.is_dir():
            found |= folders.matching(place, pattern)
    return found


def _labels(folder: Path, images: dict[str, Path], suffix: str) -> dict[str, Path]:
    """The label of every image, in the folder of the same city or recording."""
    found = {key: folder / image.parent.name / f"{key}{suffix}" for key, image in images.items()}
    missing = [path for path in found.values() if not path.is_file()]
    if missing:
        place = missing[0].parent
        stem = missing[0].name.removesuffix(suffix)
        others = sorted(path.name for path in place.glob(f"{escape(stem)}*")) if place.is_dir() else []
        raise InputError(
            f"{missing[0]}: no such file, {len(missing)} of {len(found)} labels are missing; found "
            f"{', '.join(others) or 'nothing else of this image'}; wanted label ids as the owners ship them."
        )
    return found


def _references(folder: Path, images: dict[str, Path], request: Request) -> dict[str, Path]:
    """The reference frame of every image."""
    found = {key: folder / image.parent.name / f"{key}{_REFERENCE}" for key, image in images.items()}
    missing = [path for path in found.values() if not path.is_file()]
    if missing and not request.partial:
        raise InputError(
            f"{missing[0]}: no such file, {len(missing)} of {len(found)} reference frames are missing; wanted one for "
            "every image (--references none leaves them out, --partial prepares what is there)."
        )
    return {key: path for key, path in found.items() if path.is_file()}
