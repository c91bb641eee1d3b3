# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Calgary-Campinas-359: brain extraction in T1 MR, one scanner and field strength to another.

The masks are "silver standard": the consensus of several automatic methods (STAPLE), a probability from 0 to 1 that
becomes a mask at one half. Vendor and field strength are in the file names (``CC0001_philips_15_55_M``: 1.5 T, 55
years, male). The number of subjects of each is about 60, and is checked only in sum. M3DA (arXiv 2502.17029) segments
white matter, grey matter and cerebrospinal fluid of this data set; neither those labels nor its split are used here.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, Volume, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

OWNER = Owner(
    name="Calgary-Campinas-359",
    url="https://www.ccdataset.com/",
    licence="CC BY-ND 4.0: the prepared files must not be passed on",
    citation="Souza et al., NeuroImage 170 (2018) 482, doi 10.1016/j.neuroimage.2017.08.021",
)
# Values are those after the threshold at one half.
TABLE = LabelTable.of((0, "STAPLE below 0.5", 0, "background"), (1, "STAPLE from 0.5 on", 1, "brain"))
SCANNERS = ("philips_15", "philips_3", "siemens_15", "siemens_3", "ge_15", "ge_3")
SUBJECTS = 359
LAYOUT = "Original/CC0001_philips_15_55_M.nii.gz ... (359) and STAPLE/CC0001_philips_15_55_M_staple.nii.gz ..."
SPLIT = "by subject, at random with a seed: 80 % of the target for training, 20 % for evaluation (none is published)"
_NAME = r"(CC\d{4}_(?:philips|siemens|ge)_(?:15|3)_\d+_[MF])"
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}


def read_consensus(path: Path) -> Volume:
    """Read a STAPLE probability as a mask, 1 from one half on.

    Raises:
        InputError: unreadable, or values that are no probabilities.
    """
    volume = read_volume(path)
    low, high = float(volume.array.min()), float(volume.array.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise InputError(f"{path}: found values from {low:g} to {high:g}; wanted probabilities from 0 to 1.")
    return Volume((volume.array >= 0.5).astype(np.uint8), volume.affine)


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_scanner"], request.choices["target_scanner"]
    if source == target:
        raise InputError(f"--source-scanner and --target-scanner: found {source} for both; wanted two scanners.")
    root = folders.find_root(request.folders["data"], ("Original", "STAPLE"), OWNER.name)
    images = folders.matching(root / "Original", rf"{_NAME}\.nii(?:\.gz)?")
    masks = folders.matching(root / "STAPLE", rf"{_NAME}_staple\.nii(?:\.gz)?")
    folders.require_same(images, masks, root, "subject")
    folders.require_count(len(images), SUBJECTS, root, "subject(s)", partial=request.partial)
    drawn = split_patients([key for key in images if f"_{target}_" in key], _SHARES, request.seed)
    cases = []
    for key, image in images.items():
        part: Part | None = "source" if f"_{source}_" in key else drawn.get(key)
        if part is not None:
            read = labelled(part, partial(read_consensus, masks[key]))
            cases.append(Case(key, key[:6], part, (image, masks[key]), image, read))
    return Plan(
        title=f"Brain extraction, {source} to {target}",
        tables={"source": TABLE, "target": TABLE},
        cases=tuple(cases),
        split=f"All subjects of {source} are the source. {target}: 80 % for training, 20 % for evaluation, at random "
        f"(seed {request.seed}); no split is published.",
        modality={"source": "MR", "target": "MR"},
        notes=("Labels are the consensus of automatic methods, not drawn by hand: no gold standard.",),
    )


RECIPES = (
    Recipe(
        name="cc359_scanner2scanner",
        title="brain in T1 MR, one vendor and field strength to another",
        roles=(Role("data", (OWNER,), LAYOUT),),
        plan=_plan,
        labels="brain (silver standard)",
        split=SPLIT,
        choices=(
            Choice("source_scanner", SCANNERS, "siemens_3", "vendor and field strength, 15 for 1.5 T"),
            Choice("target_scanner", SCANNERS, "ge_15", "vendor and field strength, 15 for 1.5 T"),
        ),
    ),
)
