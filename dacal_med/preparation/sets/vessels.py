# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Vessels in colour fundus photographs: DRIVE, CHASE_DB1 and STARE, any to any other.

Splits of a target: DRIVE as its owners made it where the manual segmentations of its test images are there (the
present download withholds them; then its training images are split at random). CHASE_DB1 by child, both eyes
together: 1 to 10 for training and 11 to 14 for evaluation, the first 20 and last 8 images, as many works have it; its
owners published no split that we could confirm. STARE at random; that each of its images is of another patient was
not confirmed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_mask, read_picture
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

DRIVE = Owner(
    name="DRIVE",
    url="https://drive.grand-challenge.org/",
    licence="terms of the challenge, after registration; see there",
    citation="Staal et al., IEEE TMI 23 (2004) 501, doi 10.1109/TMI.2004.825627",
)
CHASE = Owner(
    name="CHASE_DB1",
    url="https://researchinnovation.kingston.ac.uk/en/datasets/chasedb1-retinal-vessel-reference-dataset-4/",
    licence="as stated by the owners with the record; see there",
    citation="Fraz et al., IEEE Trans Biomed Eng 59 (2012) 2538, doi 10.1109/TBME.2012.2205687",
)
STARE = Owner(
    name="STARE",
    url="https://cecas.clemson.edu/~ahoover/stare/",
    licence="none stated; made available for research",
    citation="Hoover, Kouznetsova and Goldbaum, IEEE TMI 19 (2000) 203, doi 10.1109/42.845178",
)
TABLE = LabelTable.of((0, "background", 0, "background"), (1, "vessel", 1, "vessel"), (255, "vessel", 1, "vessel"))
DRIVE_IMAGES, CHASE_IMAGES, STARE_IMAGES = 20, 28, 20
CHASE_EVALUATION = frozenset({"11", "12", "13", "14"})
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}


@dataclass(frozen=True)
class Photograph:
    """A photograph and its manual segmentation.

    Attributes:
        name: unique among all data sets.
        patient: whose eye it is, as far as the owners tell.
        image: file of the photograph.
        truth: file of the first observer's segmentation.
        part: where the photograph of a target goes; None to draw it.
    """

    name: str
    patient: str
    image: Path
    truth: Path
    part: Part | None = None


def _drive(folder: Path, request: Request) -> list[Photograph]:
    root = folders.find_root(folder, ("training/images", "training/1st_manual"), DRIVE.name)
    found = _drive_part(root, "training", request)
    if (root / "test" / "1st_manual").is_dir():
        test = _drive_part(root, "test", request)
        return [
            *(Photograph(p.name, p.patient, p.image, p.truth, "target_train") for p in found),
            *(Photograph(p.name, p.patient, p.image, p.truth, "target_val") for p in test),
        ]
    return found


def _drive_part(root: Path, kind: str, request: Request) -> list[Photograph]:
    images = folders.matching(root / kind / "images", rf"(\d+)_{kind}\.tif")
    truth = folders.matching(root / kind / "1st_manual", r"(\d+)_manual1\.gif")
    folders.require_same(images, truth, root / kind, "photograph")
    folders.require_count(len(images), DRIVE_IMAGES, root / kind, "photograph(s)", partial=request.partial)
    return [Photograph(f"drive_{key}", f"drive_{key}", images[key], truth[key]) for key in images]


def _chase(folder: Path, request: Request) -> list[Photograph]:
    root = folders.find_root(folder, ("Image_01L.jpg",), CHASE.name)
    images = folders.matching(root, r"Image_(\d+[LR])\.jpg")
    truth = folders.matching(root, r"Image_(\d+[LR])_1stHO\.png")
    folders.require_same(images, truth, root, "photograph")
    folders.require_count(len(images), CHASE_IMAGES, root, "photograph(s)", partial=request.partial)
    return [
        Photograph(
            name=f"chase_{key}",
            patient=f"chase_{key[:-1]}",
            image=images[key],
            truth=truth[key],
            part="target_val" if key[:-1] in CHASE_EVALUATION else "target_train",
        )
        for key in images
    ]


def _stare(folder: Path, request: Request) -> list[Photograph]:
    root = folders.find_root(folder, ("stare-images", "labels-ah"), STARE.name)
    images = folders.matching(root / "stare-images", r"(im\d+)\.ppm(?:\.gz)?")
    truth = folders.matching(root / "labels-ah", r"(im\d+)\.ah\.ppm(?:\.gz)?")
    folders.require_same(images, truth, root, "photograph")
    folders.require_count(len(images), STARE_IMAGES, root, "photograph(s)", partial=request.partial)
    return [Photograph(f"stare_{key}", f"stare_{key}", images[key], truth[key]) for key in images]


SETS: dict[str, tuple[Callable[[Path, Request], list[Photograph]], str, str]] = {
    "drive": (_drive, "DRIVE", "training and test as the owners made them where both have manual segmentations"),
    "chase": (_chase, "CHASE_DB1", "children 1 to 10 for training, 11 to 14 for evaluation"),
    "stare": (_stare, "STARE", "at random with a seed, 80 % and 20 %"),
}
LAYOUT = (
    "drive: training/images/21_training.tif, training/1st_manual/21_manual1.gif, test likewise; chase: Image_01L.jpg, "
    "Image_01L_1stHO.png; stare: stare-images.tar and labels-ah.tar unpacked into folders stare-images "
    "(im0001.ppm.gz) and "
    "labels-ah (im0001.ah.ppm.gz)"
)


def _case(photograph: Photograph, part: Part) -> Case:
    image, truth = photograph.image, photograph.truth
    read = labelled(part, partial(read_mask, truth))
    return Case(photograph.name, photograph.patient, part, (image, truth), partial(read_picture, image), read)


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_set"], request.choices["target_set"]
    if source == target:
        raise InputError(f"--source-set and --target-set: found {source} for both; wanted two data sets.")
    read, source_title, _ = SETS[source]
    cases = [_case(photograph, "source") for photograph in read(request.folders["source"], request)]
    read, target_title, split = SETS[target]
    found = read(request.folders["target"], request)
    drawn = split_patients([photograph.patient for photograph in found], _SHARES, request.seed)
    cases += [_case(photograph, photograph.part or drawn[photograph.patient]) for photograph in found]
    at_random = any(photograph.part is None for photograph in found)
    return Plan(
        title=f"Retinal vessels, {source_title} to {target_title}",
        tables={"source": TABLE, "target": TABLE},
        cases=tuple(cases),
        split=f"All segmented photographs of {source_title} are the source. {target_title}: "
        + (f"at random, 80 % and 20 % (seed {request.seed})." if at_random else f"{split}."),
        modality={},
        notes=("Labels of the first observer. Photographs keep their size; masks of the field of view are not used.",),
    )


RECIPES = (
    Recipe(
        name="vessels_fundus2fundus",
        title="vessels in fundus photographs, 2D, one camera to another",
        roles=(Role("source", (DRIVE, CHASE, STARE), LAYOUT), Role("target", (DRIVE, CHASE, STARE), LAYOUT)),
        plan=_plan,
        labels="vessel",
        split="; ".join(f"{title}: {split}" for _, title, split in SETS.values()),
        choices=(
            Choice("source_set", tuple(SETS), "drive", "what the source folder holds"),
            Choice("target_set", tuple(SETS), "chase", "what the target folder holds"),
        ),
    ),
)
