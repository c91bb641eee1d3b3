# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""BraTS 2020 and 2021: one MR contrast to another, whole tumour or its regions.

The challenge's validation cases have no labels, and no split for adaptation was published: patients are shared out at
random, with a seed. Source and target are different patients, although every patient has all contrasts: an unpaired
task, as in practice. In the copy of BraTS 2020 on Kaggle the labels of case 355 are called
``W39_1998.09.19_Segm.nii``.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

OWNER = Owner(
    name="BraTS 2020 or 2021",
    url="https://www.med.upenn.edu/cbica/brats2020/data.html",
    licence="terms of the challenge, after registration; see there",
    citation="Menze et al., IEEE TMI 34 (2015) 1993, doi 10.1109/TMI.2014.2377694; Bakas et al., Sci Data 4 (2017) "
    "170117, doi 10.1038/sdata.2017.117; Baid et al., arXiv 2107.02314",
)
REGIONS = LabelTable.of(
    (0, "background", 0, "background"),
    (1, "necrotic and non-enhancing tumour core (NCR/NET)", 1, "tumour core, not enhancing"),
    (2, "peritumoral oedema (ED)", 2, "oedema"),
    (4, "enhancing tumour (ET)", 3, "enhancing tumour"),
)
WHOLE = LabelTable.of(
    (0, "background", 0, "background"),
    (1, "necrotic and non-enhancing tumour core (NCR/NET)", 1, "whole tumour"),
    (2, "peritumoral oedema (ED)", 1, "whole tumour"),
    (4, "enhancing tumour (ET)", 1, "whole tumour"),
)
TABLES = {"regions": REGIONS, "whole": WHOLE}
CONTRASTS = ("t1", "t1ce", "t2", "flair")
COUNTS = {"BraTS20_Training": 369, "BraTS2021": 1251}
LAYOUT = (
    "the folder of training cases: BraTS20_Training_001/BraTS20_Training_001_{t1,t1ce,t2,flair,seg}.nii[.gz] "
    "... (369), or "
    "BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz ... (1251)"
)
SPLIT = "by patient, at random with a seed: 40 % source, 40 % target for training, 20 % target for evaluation"
_SHARES: dict[Part, Fraction] = {
    "source": Fraction(2, 5),
    "target_train": Fraction(2, 5),
    "target_val": Fraction(1, 5),
}


def _patients(folder: Path, *, incomplete: bool) -> dict[str, Path]:
    """Folders of the patients by name, wherever the archive put them."""
    folder = given_path(folder, home=True)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted {LAYOUT}.")
    level = [folder]
    for _ in range(4):  # the archive of 2020 has three folders around the cases
        for place in level:
            for prefix, count in COUNTS.items():
                found = folders.matching(place, rf"({prefix}_\d+)")
                if found:
                    folders.require_count(len(found), count, place, "training case(s)", partial=incomplete)
                    return found
        level = [path for place in level for path in folders.entries(place) if path.is_dir()]
    raise InputError(f"{folder}: found {folders.listing(folder)}; wanted {LAYOUT}.")


def _file(patient: Path, kind: str) -> Path:
    names = [f"{patient.name}_{kind}.nii.gz", f"{patient.name}_{kind}.nii"]
    if patient.name == "BraTS20_Training_355" and kind == "seg":
        names.append("W39_1998.09.19_Segm.nii")
    for name in names:
        if (patient / name).is_file():
            return patient / name
    raise InputError(f"{patient}: found {folders.listing(patient)}; wanted {names[0]}.")


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_contrast"], request.choices["target_contrast"]
    if source == target:
        raise InputError(f"--source-contrast and --target-contrast: found {source} for both; wanted two contrasts.")
    patients = _patients(request.folders["data"], incomplete=request.partial)
    parts = split_patients(patients, _SHARES, request.seed)
    cases = []
    for name, folder in patients.items():
        part = parts[name]
        contrast = source if part == "source" else target
        image, truth = _file(folder, contrast), _file(folder, "seg")
        label = labelled(part, partial(read_volume, truth))
        cases.append(Case(f"{name}_{contrast}", name, part, (image, truth), image, label))
    table = TABLES[request.choices["classes"]]
    return Plan(
        title=f"BraTS, {source} to {target}",
        tables={"source": table, "target": table},
        cases=tuple(cases),
        split="By patient, at random "
        f"(seed {request.seed}): 40 % of the patients are the source ({source} alone), 40 % the target for "
        f"training, 20 % "
        f"the target for evaluation ({target} alone); no split is published.",
        modality={"source": "MR", "target": "MR"},
        notes=("Images are co-registered, resampled to 1 mm and skull-stripped by the owners.",),
    )


RECIPES = (
    Recipe(
        name="brats_contrast2contrast",
        title="glioma, one MR contrast to another",
        roles=(Role("data", (OWNER,), LAYOUT),),
        plan=_plan,
        labels="tumour core that does not enhance, oedema, enhancing tumour; or the whole tumour",
        split=SPLIT,
        choices=(
            Choice("source_contrast", CONTRASTS, "t2", "contrast of the labelled images"),
            Choice("target_contrast", CONTRASTS, "flair", "contrast of the others"),
            Choice("classes", tuple(TABLES), "regions", "three regions, or the whole tumour"),
        ),
    ),
)
