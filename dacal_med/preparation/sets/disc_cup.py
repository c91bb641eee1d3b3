# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Optic disc and cup in fundus photographs: REFUGE, RIM-ONE r3 and Drishti-GS1, one camera to another.

REFUGE has two cameras: its 400 training images are of one (Zeiss), its 400 validation and 400 test images of another
(Canon). The disc is the class outside the cup and the cup together. RIM-ONE r3 gives stereo pairs, whose left half is
annotated; expert 1 is used. Drishti-GS1 gives the share of four experts as a grey value: where at least half agree is
inside, which is our reading, as is one half for the edges of RIM-ONE's masks.

Splits of a target: REFUGE (Canon) validation for training and test for evaluation, Drishti-GS1 50 and 51, both the
owners'. RIM-ONE r3 at random in the sizes 99 and 60 of Maninis et al. (MICCAI 2016); their ids were not taken over.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Picture, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_mask, read_picture
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

REFUGE = Owner(
    name="REFUGE",
    url="https://refuge.grand-challenge.org/",
    licence="terms of the challenge, after registration; see there",
    citation="Orlando et al., Med Image Anal 59 (2020) 101570, doi 10.1016/j.media.2019.101570",
)
RIMONE = Owner(
    name="RIM-ONE r3",
    url="https://medimrg.webs.ull.es/research/downloads/",
    licence="for research, as stated by the owners; see there",
    citation="Fumero et al., RIM-ONE: An open retinal image database for optic nerve evaluation, CBMS 2011, "
    "doi 10.1109/CBMS.2011.5999143",
)
DRISHTI = Owner(
    name="Drishti-GS1",
    url="https://cvit.iiit.ac.in/projects/mip/drishti-gs/mip-dataset2/Home.php",
    licence="for research, as stated by the owners; see there",
    citation="Sivaswamy et al., ISBI 2014, doi 10.1109/ISBI.2014.6867807",
)
DISC, CUP = "optic disc outside the cup", "optic cup"
GREY = LabelTable.of((255, "background", 0, "background"), (128, "optic disc", 1, DISC), (0, "optic cup", 2, CUP))
# Two masks are combined as they are read: 1 where inside the disc alone, 2 where inside the cup.
MASKS = LabelTable.of(
    (0, "in no mask", 0, "background"), (1, "in the disc's mask", 1, DISC), (2, "in the cup's mask", 2, CUP)
)
REFUGE_IMAGES, RIMONE_IMAGES, DRISHTI_IMAGES = 400, 159, {"Training": 50, "Test": 51}
_HALF = 127  # two of four experts are 127.5, rounded up or down
_EVEN: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}
_RIMONE: dict[Part, Fraction] = {"target_train": Fraction(99, 159), "target_val": Fraction(60, 159)}


@dataclass(frozen=True)
class Photograph:
    """A photograph and its label.

    Attributes:
        name: unique among all data sets; also the patient, since owners name none.
        image: file of the photograph.
        truth: files of the label.
        stereo: whether the left half alone is used.
        part: where the photograph of a target goes; None to draw it.
    """

    name: str
    image: Path
    truth: tuple[Path, ...]
    stereo: bool = False
    part: Part | None = None


def _refuge(images: dict[str, Path], truth: dict[str, Path], root: Path, request: Request) -> list[Photograph]:
    folders.require_same(images, truth, root, "photograph")
    folders.require_count(len(images), REFUGE_IMAGES, root, "photograph(s)", partial=request.partial)
    return [Photograph(f"refuge_{key}", images[key], (truth[key],)) for key in images]


def _zeiss(folder: Path, request: Request) -> list[Photograph]:
    kinds = ("Glaucoma", "Non-Glaucoma")
    root = folders.find_root(folder, [f"Training400/{kind}" for kind in kinds], REFUGE.name) / "Training400"
    masks = folders.find_root(folder, [f"Disc_Cup_Masks/{kind}" for kind in kinds], REFUGE.name) / "Disc_Cup_Masks"
    images: dict[str, Path] = {}
    truth: dict[str, Path] = {}
    for kind in kinds:
        images |= folders.matching(root / kind, r"([gn]\d+)\.jpg")
        truth |= folders.matching(masks / kind, r"([gn]\d+)\.bmp")
    return _refuge(images, truth, root, request)


def _canon(folder: Path, request: Request) -> list[Photograph]:
    root = folders.find_root(folder, ("V0001.jpg",), REFUGE.name)
    masks = folders.find_root(folder, ("V0001.bmp",), REFUGE.name)
    images, truth = folders.matching(root, r"(V\d+)\.jpg"), folders.matching(masks, r"(V\d+)\.bmp")
    training = _refuge(images, truth, root, request)
    root = folders.find_root(folder, ("T0001.jpg",), REFUGE.name)
    masks = folders.find_root(folder, ("Disc_Cup_Masks/G", "Disc_Cup_Masks/N"), REFUGE.name) / "Disc_Cup_Masks"
    images = folders.matching(root, r"(T\d+)\.jpg")
    truth = folders.matching(masks / "G", r"(T\d+)\.bmp") | folders.matching(masks / "N", r"(T\d+)\.bmp")
    evaluation = _refuge(images, truth, root, request)
    return [
        *(replace(photograph, part="target_train") for photograph in training),
        *(replace(photograph, part="target_val") for photograph in evaluation),
    ]


def _rimone(folder: Path, request: Request) -> list[Photograph]:
    groups = ("Healthy", "Glaucoma and suspects")
    root = folders.find_root(folder, [f"{group}/Stereo Images" for group in groups], RIMONE.name)
    found = []
    for group in groups:
        images = folders.matching(root / group / "Stereo Images", r"([NGS]-\d+-[LR])\.jpg")
        masks = root / group / "Expert1_masks"
        disc = folders.matching(masks, r"([NGS]-\d+-[LR])(?:-1)?-Disc-exp1\.png")
        cup = folders.matching(masks, r"([NGS]-\d+-[LR])(?:-1)?-Cup-exp1\.png")
        folders.require_same(images, disc, root / group, "disc")
        folders.require_same(images, cup, root / group, "cup")
        found += [Photograph(f"rimone_{key}", images[key], (disc[key], cup[key]), stereo=True) for key in images]
    folders.require_count(len(found), RIMONE_IMAGES, root, "stereo photograph(s)", partial=request.partial)
    return found


def _drishti(folder: Path, request: Request) -> list[Photograph]:
    root = folders.find_root(folder, ("Training/Images", "Training/GT", "Test/Images", "Test/Test_GT"), DRISHTI.name)
    places: tuple[tuple[str, str, Part], ...] = (("Training", "GT", "target_train"), ("Test", "Test_GT", "target_val"))
    found = []
    for kind, truth, part in places:
        place = root / kind / "Images"
        # Releases differ in whether images lie in folders by diagnosis.
        images: dict[str, Path] = {}
        for inner in (place, *(path for path in folders.entries(place) if path.is_dir())):
            images |= folders.matching(inner, r"(drishtiGS_\d+)\.png")
        folders.require_count(len(images), DRISHTI_IMAGES[kind], place, "photograph(s)", partial=request.partial)
        for key, image in sorted(images.items()):
            maps = root / kind / truth / key / "SoftMap"
            files = (maps / f"{key}_ODsegSoftmap.png", maps / f"{key}_cupsegSoftmap.png")
            for path in files:
                if not path.is_file():
                    raise InputError(f"{path}: no such file; wanted the label of {image.name}.")
            found.append(Photograph(key, image, files, part=part))
    return found


def read_half(path: Path) -> Picture:
    """Read the left half of a stereo photograph."""
    array = read_picture(path).array
    return Picture(array[:, : array.shape[1] // 2])


def combine_masks(disc: Path, cup: Path, columns: int | None = None) -> Picture:
    """Combine two masks, inside from half of their range on; the cup wins.

    Args:
        disc: mask of the disc, the cup included.
        cup: mask of the cup.
        columns: how many columns to keep, from the left; None for all.

    Returns:
        0 outside, 1 in the disc alone, 2 in the cup.

    Raises:
        InputError: a file is unreadable, coloured, or the masks are of two sizes.
    """
    inside = [read_mask(path).array[:, :columns] >= _HALF for path in (disc, cup)]
    if inside[0].shape != inside[1].shape:
        raise InputError(f"{cup}: found size {inside[1].shape}; wanted {inside[0].shape}, that of {disc}.")
    return Picture(np.where(inside[1], 2, inside[0].astype(np.uint8)).astype(np.uint8))


def _stereo_masks(photograph: Photograph) -> Picture:
    disc, cup = photograph.truth
    return combine_masks(disc, cup, columns=read_half(photograph.image).array.shape[1])


def _case(photograph: Photograph, part: Part) -> Case:
    image, truth = photograph.image, photograph.truth
    read: Callable[[], Picture]
    if len(truth) == 1:
        read = partial(read_mask, truth[0])
    else:
        read = partial(_stereo_masks, photograph) if photograph.stereo else partial(combine_masks, truth[0], truth[1])
    return Case(
        name=photograph.name,
        patient=photograph.name,
        part=part,
        inputs=(image, *truth),
        image=partial(read_half if photograph.stereo else read_picture, image),
        label=labelled(part, read),
    )


Reader = Callable[[Path, Request], list[Photograph]]
SETS: dict[str, tuple[Reader, LabelTable, str, dict[Part, Fraction]]] = {
    "refuge": (_zeiss, GREY, "REFUGE (Zeiss)", _EVEN),
    "refuge_canon": (_canon, GREY, "REFUGE (Canon)", _EVEN),
    "rimone": (_rimone, MASKS, "RIM-ONE r3", _RIMONE),
    "drishti": (_drishti, MASKS, "Drishti-GS1", _EVEN),
}
LAYOUT = (
    "refuge: Training400/{Glaucoma,Non-Glaucoma}/*.jpg and Annotation-Training400/Disc_Cup_Masks/...*.bmp; "
    "refuge_canon: "
    "REFUGE-Validation400/V0001.jpg ..., REFUGE-Validation400-GT/Disc_Cup_Masks/V0001.bmp ..., Test400/T0001.jpg ..., "
    "REFUGE-Test-GT/Disc_Cup_Masks/{G,N}/*.bmp; rimone: {Healthy,Glaucoma and suspects}/Stereo Images/N-10-R.jpg and "
    "Expert1_masks/N-10-R-1-{Disc,Cup}-exp1.png; drishti: Training/{Images,GT}, Test/{Images,Test_GT}"
)
SPLIT = (
    "REFUGE (Canon): validation for training, test for evaluation; Drishti-GS1: the owners' 50 and 51; "
    "RIM-ONE r3: at random, "
    "99 and 60; REFUGE (Zeiss) as a target: at random, 80 % and 20 %"
)


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_set"], request.choices["target_set"]
    if source == target:
        raise InputError(f"--source-set and --target-set: found {source} for both; wanted two data sets.")
    read, source_table, source_title, _ = SETS[source]
    cases = [_case(photograph, "source") for photograph in read(request.folders["source"], request)]
    read, target_table, target_title, shares = SETS[target]
    found = read(request.folders["target"], request)
    drawn = split_patients([photograph.name for photograph in found], shares, request.seed)
    cases += [_case(photograph, photograph.part or drawn[photograph.name]) for photograph in found]
    return Plan(
        title=f"Optic disc and cup, {source_title} to {target_title}",
        tables={"source": source_table, "target": target_table},
        cases=tuple(cases),
        split=f"All labelled photographs of {source_title} are the source. Targets: {SPLIT} (seed "
        f"{request.seed}). No owner "
        "says whose eyes are whose: every photograph counts as a patient.",
        modality={},
        notes=(
            "The optic disc as clinicians have it is both classes together.",
            "Whole photographs, in their own sizes.",
        ),
    )


_OWNERS = (REFUGE, RIMONE, DRISHTI)
RECIPES = (
    Recipe(
        name="disc_cup_fundus2fundus",
        title="optic disc and cup in fundus photographs, 2D, one camera to another",
        roles=(Role("source", _OWNERS, LAYOUT), Role("target", _OWNERS, LAYOUT)),
        plan=_plan,
        labels=f"{DISC}, {CUP}",
        split=SPLIT,
        choices=(
            Choice("source_set", tuple(SETS), "refuge", "what the source folder holds"),
            Choice("target_set", tuple(SETS), "drishti", "what the target folder holds"),
        ),
    ),
)
