# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Hippocampus, one site to another: crops of the Medical Segmentation Decathlon to crops of OASIS-TRT-20.

The Decathlon ships crops of about 35 x 50 x 35 mm around one hippocampus; OASIS-TRT-20 ships heads. Boxes of that
size are cut around each hippocampus, in the patient's axes, at a place that a seeded draw moves, so that the middle
of the box does not tell where the hippocampus is. The box of training images is placed by their labels too; nothing
else uses them.

The labels are those drawn by hand (``DKT31_CMA_labels_v2``, converted by the owners to FreeSurfer's numbers: 17 left,
53 right). ``labels.DKT31.manual+aseg.nii.gz`` beside the images is not used: below the cortex it holds FreeSurfer's
own segmentation. All other numbers are background; their full list was not confirmed, so that any up to 2999 is
taken.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, Volume, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

MSD = Owner(
    name="Medical Segmentation Decathlon, Task04 Hippocampus",
    url="https://medicaldecathlon.com/",
    licence="CC BY-SA 4.0",
    citation="Antonelli et al., Nat Commun 13 (2022) 4128, doi 10.1038/s41467-022-30695-9; Simpson et al., "
    "arXiv 1902.09063",
)
OASIS = Owner(
    name="Mindboggle-101, OASIS-TRT-20 volumes",
    url="https://mindboggle.info/data",
    licence="CC BY-NC-SA 3.0 in the release of 2012; images under the terms of OASIS",
    citation="Klein and Tourville, Front Neurosci 6 (2012) 171, doi 10.3389/fnins.2012.00171",
)
OASIS_LABELS = Owner(
    name="Mindboggle-101, OASIS-TRT-20 labels of cortex and below (DKT31 CMA, version 2)",
    url="https://mindboggle.info/data",
    licence="CC BY-NC-ND (labels by Neuromorphometrics): the prepared files must not be passed on",
    citation="Klein and Tourville, Front Neurosci 6 (2012) 171, doi 10.3389/fnins.2012.00171",
)
MSD_TABLE = LabelTable.of(
    (0, "background", 0, "background"), (1, "anterior", 1, "hippocampus"), (2, "posterior", 1, "hippocampus")
)
LEFT, RIGHT = 17, 53
OASIS_TABLE = LabelTable.of(
    (0, "background", 0, "background"),
    ((1, 16), "other structures", 0, "background"),
    (LEFT, "left hippocampus", 1, "hippocampus"),
    ((18, 52), "other structures", 0, "background"),
    (RIGHT, "right hippocampus", 1, "hippocampus"),
    ((54, 2999), "other structures, cortex (1000s left, 2000s right)", 0, "background"),
)
MSD_CASES, OASIS_SUBJECTS = 260, 20
BOX_MM = (35.0, 50.0, 35.0)  # right-left, front-back, head-foot
JITTER_MM = 5.0
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(3, 5), "target_val": Fraction(2, 5)}


def crop_around(
    image: Path, labels: Path, value: int, table_file: bool, draw: tuple[int, ...], jitter_mm: float = JITTER_MM
) -> Volume:
    """Cut a box around one structure out of a head.

    Args:
        image: NIfTI file.
        labels: NIfTI file on the same grid.
        value: label value of the structure.
        table_file: whether to cut the labels instead of the image.
        draw: seeds of the box's place; the same ones give the same place.
        jitter_mm: how far the middle of the box may lie from that of the structure, along each axis.

    Returns:
        Axes along right, anterior, superior; ``BOX_MM`` large, or as large as the head allows or the structure needs.

    Raises:
        InputError: the files are not on one grid, or the structure is not in the labels.
    """
    head, marks = read_volume(image), read_volume(labels)
    if head.array.shape != marks.array.shape or not np.allclose(head.affine, marks.affine, atol=1e-3):
        raise InputError(f"{labels}: lies on another grid than {image}; wanted the same shape and affine.")
    chosen = marks if table_file else head
    turned = nib.as_closest_canonical(nib.Nifti1Image(chosen.array, head.affine))
    where = nib.as_closest_canonical(nib.Nifti1Image((marks.array == value).astype(np.uint8), head.affine))
    inside = np.argwhere(np.asarray(where.dataobj) > 0)
    if not len(inside):
        raise InputError(f"{labels}: found no voxel of value {value}; wanted a hippocampus.")
    low, high = inside.min(0), inside.max(0) + 1
    spacing = np.linalg.norm(turned.affine[:3, :3], axis=0)
    size = np.minimum(np.maximum(np.round(BOX_MM / spacing).astype(int), high - low), turned.shape)
    # No further than where the structure would be cut.
    reach = np.minimum(np.floor(jitter_mm / spacing), (size - (high - low)) // 2)
    moved = np.random.default_rng(draw).integers(-reach, reach, endpoint=True)
    start = np.clip((low + high - size) // 2 + moved, 0, np.asarray(turned.shape) - size).astype(int)
    box = turned.slicer[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
    return Volume(np.asarray(box.dataobj), np.asarray(box.affine))


def _source(request: Request) -> list[Case]:
    root = folders.find_root(request.folders["source"], ("imagesTr", "labelsTr"), MSD.name)
    images = folders.matching(root / "imagesTr", r"hippocampus_(\d+)\.nii(?:\.gz)?")
    labels = folders.matching(root / "labelsTr", r"hippocampus_(\d+)\.nii(?:\.gz)?")
    folders.require_same(images, labels, root, "training crop")
    folders.require_count(len(images), MSD_CASES, root, "labelled crop(s)", partial=request.partial)
    return [
        Case(
            f"msd_{key}",
            f"msd_{key}",
            "source",
            (images[key], labels[key]),
            images[key],
            partial(read_volume, labels[key]),
        )
        for key in images
    ]


def _target(request: Request) -> list[Case]:
    root = folders.find_root(request.folders["target"], ("OASIS-TRT-20-1",), OASIS.name)
    subjects = folders.matching(root, r"OASIS-TRT-20-(\d+)")
    place = folders.find_root(
        request.folders["target_labels"], ("OASIS-TRT-20-1_DKT31_CMA_labels.nii.gz",), OASIS_LABELS.name
    )
    marks = folders.matching(place, r"OASIS-TRT-20-(\d+)_DKT31_CMA_labels\.nii\.gz")
    folders.require_same(subjects, marks, root, "subject")
    folders.require_count(len(subjects), OASIS_SUBJECTS, root, "subject(s)", partial=request.partial)
    parts = split_patients(subjects, _SHARES, request.seed)
    cases = []
    for key in sorted(subjects, key=int):
        image = subjects[key] / "t1weighted_brain.nii.gz"
        if not image.is_file():
            raise InputError(
                f"{subjects[key]}: found {folders.listing(subjects[key])}; wanted t1weighted_brain.nii.gz."
            )
        for side, value in (("left", LEFT), ("right", RIGHT)):
            cut = partial(crop_around, image, marks[key], value, draw=(request.seed, int(key), value))
            part = parts[key]
            cases.append(
                Case(
                    name=f"oasis_{int(key):02d}_{side}",
                    patient=f"OASIS-TRT-20-{key}",
                    part=part,
                    inputs=(image, marks[key]),
                    image=partial(cut, table_file=False),
                    label=labelled(part, partial(cut, table_file=True)),
                )
            )
    return cases


def _plan(request: Request) -> Plan:
    return Plan(
        title="Hippocampus, MSD to OASIS-TRT-20",
        tables={"source": MSD_TABLE, "target": OASIS_TABLE},
        cases=(*_source(request), *_target(request)),
        split="All labelled MSD crops are the source. OASIS-TRT-20: 12 subjects for training, 8 for evaluation, both "
        f"hippocampi of a subject together, at random (seed {request.seed}); no split is published.",
        modality={"source": "MR", "target": "MR"},
        notes=(
            f"Target boxes of {BOX_MM[0]:g} x {BOX_MM[1]:g} x {BOX_MM[2]:g} mm, moved by up to {JITTER_MM:g} "
            f"mm from the "
            "middle of the hippocampus. Their place comes from the labels, also for training images.",
            "MSD images show the scalp's surroundings, OASIS images are skull-stripped by their owners.",
        ),
    )


RECIPES = (
    Recipe(
        name="hippocampus_msd2oasis",
        title="hippocampus in T1 MR, MSD to OASIS-TRT-20",
        roles=(
            Role(
                "source", (MSD,), "Task04_Hippocampus with imagesTr and labelsTr (260 pairs hippocampus_001.nii.gz ...)"
            ),
            Role("target", (OASIS,), "OASIS-TRT-20_volumes with OASIS-TRT-20-1/t1weighted_brain.nii.gz ... 20"),
            Role(
                "target_labels",
                (OASIS_LABELS,),
                "OASIS-TRT-20_DKT31_CMA_labels_v2 with OASIS-TRT-20-1_DKT31_CMA_labels.nii.gz ... 20",
            ),
        ),
        plan=_plan,
        labels="hippocampus (anterior and posterior, left and right together)",
        split="by subject, at random with a seed: 12 of OASIS-TRT-20 for training, 8 for evaluation (none is "
        "published)",
    ),
)
