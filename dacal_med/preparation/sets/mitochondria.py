# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Mitochondria in electron microscopy, 2D: VNC III, Lucchi and MitoEM, any to any other.

Sections become PNG files in the pixel size of their owners: VNC 4.6 nm, Lucchi 5 nm, MitoEM 8 nm. VNC III to Lucchi is
the task of Peng, Yi and Yuan (IEEE J Sel Top Signal Process 14, 2020, 1199, doi 10.1109/JSTSP.2020.3005317); whether
they resample was not confirmed. DA-ISC (Huang et al., MICCAI 2022, doi 10.1007/978-3-031-16440-8_9) reports it twice,
with Lucchi's stacks as the owners use them (subset 1, ``lucchi``) and exchanged (subset 2, ``lucchi2``). Each data set
is one specimen: parts are blocks of neighbouring sections, as the owners made them, not patients.

Not confirmed: whether the masks of VNC use 1 or 255 for mitochondria (any value but 0 is taken, its README calls them
binary), and layouts of MitoEM other than the section folders of its release v2 (no HDF5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from dacal_med.io.errors import InputError
from dacal_med.io.pictures import count_pages
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Picture, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_mask, read_picture
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import section_blocks

VNC = Owner(
    name="Segmented anisotropic ssTEM dataset of neural tissue (VNC III)",
    url="https://github.com/unidesigner/groundtruth-drosophila-vnc",
    licence="CC BY-NC-SA 3.0",
    citation="Gerhard et al., figshare (2013), doi 10.6084/m9.figshare.856713",
)
LUCCHI = Owner(
    name="EPFL Electron Microscopy Dataset (Lucchi)",
    url="https://www.epfl.ch/labs/cvlab/data/data-em/",
    licence="for research, as stated by the owners; see there",
    citation="Lucchi, Li and Fua, Learning for Structured Prediction Using Approximate Subgradient Descent with "
    "Working Sets, CVPR 2013, doi 10.1109/CVPR.2013.259",
)
MITOEM = Owner(
    name="MitoEM",
    url="https://mitoem.grand-challenge.org/",
    licence="terms of the challenge; see there",
    citation="Wei et al., MitoEM Dataset: Large-Scale 3D Mitochondria Instance Segmentation from EM Images, "
    "MICCAI 2020, doi 10.1007/978-3-030-59722-1_7",
)
BINARY = LabelTable.of((0, "background", 0, "background"), ((1, 255), "mitochondria", 1, "mitochondria"))
INSTANCES = LabelTable.of(
    (0, "background", 0, "background"), ((1, 2**32 - 1), "number of a mitochondrion", 1, "mitochondria")
)
VNC_SECTIONS, VNC_TRAINING = 20, 16
LUCCHI_SECTIONS = 165
MITOEM_SECTIONS = {"mito-train-v2": 400, "mito-val-v2": 100}
Block = Literal["training", "evaluation"]


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: unique in its data set.
        image: file of the image.
        truth: file of the label.
        page: page of both files.
    """

    name: str
    image: Path
    truth: Path
    page: int = 0


def _vnc(folder: Path, block: Block | None, request: Request) -> list[Section]:
    root = folders.find_root(folder, ("stack1/raw", "stack1/mitochondria"), VNC.name) / "stack1"
    images = folders.matching(root / "raw", r"(\d+)\.tiff?")
    truth = folders.matching(root / "mitochondria", r"(\d+)\.png")
    folders.require_same(images, truth, root, "section")
    folders.require_count(len(images), VNC_SECTIONS, root, "section(s)", partial=request.partial)
    chosen = {None: list(images), "training": list(images)[:VNC_TRAINING], "evaluation": list(images)[VNC_TRAINING:]}
    return [Section(f"vnc3_{key}", images[key], truth[key]) for key in chosen[block]]


def _lucchi(evaluated: str, folder: Path, block: Block | None, request: Request) -> list[Section]:
    names = ("training.tif", "training_groundtruth.tif", "testing.tif", "testing_groundtruth.tif")
    root = folders.find_root(folder, names, LUCCHI.name)
    unlabelled = "training" if evaluated == "testing" else "testing"
    kind = evaluated if block == "evaluation" else unlabelled
    image, truth = root / f"{kind}.tif", root / f"{kind}_groundtruth.tif"
    for path in (image, truth):
        folders.require_count(count_pages(path), LUCCHI_SECTIONS, path, "section(s)", partial=request.partial)
    pages = count_pages(image)
    if count_pages(truth) != pages:
        raise InputError(f"{truth}: found {count_pages(truth)} page(s); wanted {pages}, as in {image.name}.")
    return [Section(f"lucchi_{kind}_{page:03d}", image, truth, page) for page in range(pages)]


def _mitoem(kind: str, folder: Path, block: Block | None, request: Request) -> list[Section]:
    place = "mito-val-v2" if block == "evaluation" else "mito-train-v2"
    root = folders.find_root(folder, ("im", *MITOEM_SECTIONS), MITOEM.name)
    images = folders.matching(root / "im", r"im(\d+)\.png")
    truth = folders.matching(root / place, r"seg(\d+)\.tiff?")
    folders.require_count(len(truth), MITOEM_SECTIONS[place], root / place, "section(s)", partial=request.partial)
    images = {key: path for key, path in images.items() if key in truth}
    folders.require_same(images, truth, root, "labelled section")
    return [Section(f"mitoem_{kind}_{key}", images[key], truth[key]) for key in truth]


Reader = Callable[[Path, Block | None, Request], list[Section]]
SETS: dict[str, tuple[Reader, LabelTable, str]] = {
    "vnc3": (_vnc, BINARY, "VNC III"),
    "lucchi": (partial(_lucchi, "testing"), BINARY, "Lucchi"),
    "mitoem_r": (partial(_mitoem, "r"), INSTANCES, "MitoEM-R"),
    "mitoem_h": (partial(_mitoem, "h"), INSTANCES, "MitoEM-H"),
}
# A choice of targets alone: of a source nothing is evaluated.
EXCHANGED = "lucchi2"
TARGET_SETS: dict[str, tuple[Reader, LabelTable, str]] = {
    **SETS,
    EXCHANGED: (partial(_lucchi, "training"), BINARY, "Lucchi with its stacks exchanged"),
}
LAYOUT = (
    "vnc3: stack1/raw/00.tif ... 19.tif and stack1/mitochondria/00.png ...; lucchi: training.tif, "
    "training_groundtruth.tif, "
    "testing.tif, testing_groundtruth.tif (165 pages each); mitoem_r or mitoem_h, one of the two unpacked "
    "into a folder of its "
    "own: im/im0000.png ..., mito-train-v2/seg0000.tif ... (400), mito-val-v2/seg0400.tif ... (100)"
)
SPLIT = (
    "the owners': Lucchi training.tif and testing.tif, as lucchi2 the other way round; MitoEM train and "
    "val sections; VNC III, whose README proposes 80 % and 20 % of the sections, the first 16 and the last 4"
)


def _grey(path: Path, page: int) -> Picture:
    picture = read_picture(path, page)
    if picture.array.ndim == 3:
        return read_mask(path, page)  # grey written as three equal channels
    return picture


def _case(section: Section, patient: str, part: Part) -> Case:
    return Case(
        name=section.name,
        patient=patient,
        part=part,
        inputs=(section.image, section.truth),
        image=partial(_grey, section.image, section.page),
        label=labelled(part, partial(read_mask, section.truth, section.page)),
    )


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_set"], request.choices["target_set"]
    if (source, target) == ("lucchi", EXCHANGED) or source == target:
        raise InputError(f"--source-set and --target-set: found {source} for both; wanted two data sets.")
    read, source_table, source_title = SETS[source]
    # As a source VNC III is used whole: nothing of it is evaluated.
    sections = read(request.folders["source"], None, request)
    blocks = section_blocks(source, len(sections))
    cases = [_case(section, block, "source") for section, block in zip(sections, blocks, strict=True)]
    read, target_table, target_title = TARGET_SETS[target]
    parts: tuple[tuple[Block, Part], ...] = (("training", "target_train"), ("evaluation", "target_val"))
    for block, part in parts:
        sections = read(request.folders["target"], block, request)
        cases += [_case(section, f"{target}, {block} block", part) for section in sections]
    return Plan(
        title=f"Mitochondria, {source_title} to {target_title}",
        tables={"source": source_table, "target": target_table},
        cases=tuple(cases),
        split=f"{SPLIT[0].upper()}{SPLIT[1:]}. Source: the training sections, all sections of VNC III.",
        modality={},
        notes=(
            "Training and evaluation blocks of a target are of one specimen: 'patients' are blocks here.",
            "The source is one specimen too, in five blocks of neighbouring sections, which are held out whole. Where "
            "two blocks meet, sections held out and trained on are neighbours.",
            "Pixels are those of the owners, not resampled: VNC III 4.6 nm, Lucchi 5 nm, MitoEM 8 nm.",
        ),
    )


RECIPES = (
    Recipe(
        name="mitochondria_em2em",
        title="mitochondria in electron microscopy, 2D, one specimen to another",
        roles=(Role("source", (VNC, LUCCHI, MITOEM), LAYOUT), Role("target", (VNC, LUCCHI, MITOEM), LAYOUT)),
        plan=_plan,
        labels="mitochondria",
        split=SPLIT,
        choices=(
            Choice("source_set", tuple(SETS), "vnc3", "what the source folder holds"),
            Choice(
                "target_set",
                tuple(TARGET_SETS),
                "lucchi",
                "what the target folder holds; lucchi2 is lucchi with testing.tif unlabelled, training.tif evaluated",
            ),
        ),
    ),
)
