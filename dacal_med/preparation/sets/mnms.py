# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""M&Ms: cardiac cine MR, one scanner vendor to another.

End-diastole and end-systole, the two annotated frames of each 4D file, are named by the owners' table (counted from
0). The owners' parts are kept: labelled training cases of one vendor; training (with and without labels) and
validation cases of the other, without labels; test cases of the other for evaluation. The numbers of cases per part
(150, 25, 34, 136) add up to the 345 that are openly available, and were not confirmed one by one. Files called
``_gt`` lie beside unlabelled cases too and are not read.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role

OWNER = Owner(
    name="M&Ms (Multi-Centre, Multi-Vendor and Multi-Disease Cardiac Segmentation)",
    url="https://www.ub.edu/mnms/",
    licence="as stated by the owners with the download, after registration",
    citation="Campello et al., IEEE TMI 40 (2021) 3543, doi 10.1109/TMI.2021.3090082",
)
TABLE = LabelTable.of(
    (0, "background", 0, "background"),
    (1, "left ventricle blood pool", 1, "left ventricle"),
    (2, "left ventricular myocardium", 2, "myocardium"),
    (3, "right ventricle blood pool", 3, "right ventricle"),
)
VENDORS = {"A": "Siemens", "B": "Philips", "C": "General Electric", "D": "Canon"}
COUNTS = {"Training/Labeled": 150, "Training/Unlabeled": 25, "Validation": 34, "Testing": 136}
LAYOUT = (
    "OpenDataset with Training/Labeled, Training/Unlabeled, Validation, Testing (<code>/<code>_sa.nii.gz and "
    "<code>_sa_gt.nii.gz, 4D) and 211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
)
SPLIT = "the owners': labelled training cases; training and validation cases without labels; test cases"
_COLUMNS = ("External code", "Vendor", "ED", "ES")


def _table(root: Path) -> dict[str, dict[str, str]]:
    """Rows of the owners' table by patient."""
    found = list(folders.matching(root, r"(.*M&Ms_Dataset_information.*)\.csv").values())
    if len(found) != 1:
        raise InputError(f"{root}: found {len(found)} table(s) of patients (csv); wanted one.")
    try:
        with found[0].open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{found[0]}: cannot be read ({error}); wanted the owners' table.") from error
    missing = [column for column in _COLUMNS if not rows or column not in rows[0]]
    if missing:
        raise InputError(f"{found[0]}: found no column {', '.join(missing)}; wanted {', '.join(_COLUMNS)}.")
    return {row["External code"]: row for row in rows}


def _frames(row: dict[str, str], root: Path) -> dict[str, int]:
    try:
        # Tables that passed through a spreadsheet write 9 as 9.0.
        return {phase: int(float(row[phase])) for phase in ("ED", "ES")}
    except (ValueError, OverflowError) as error:
        raise InputError(
            f"{root}: the table gives frames ED {row['ED']!r}, ES {row['ES']!r} for {row['External code']}; "
            f"wanted numbers."
        ) from error


def _cases(root: Path, where: str, vendor: str, part: Part, request: Request) -> list[Case]:
    table = _table(root)
    patients = folders.matching(root / where, r"([a-z]\d[a-z]\d[a-z]\d)")
    folders.require_count(len(patients), COUNTS[where], root / where, "patient(s)", partial=request.partial)
    cases = []
    for code, folder in patients.items():
        if code not in table:
            raise InputError(f"{folder}: found a patient that is not in the owners' table; wanted one of {len(table)}.")
        if table[code]["Vendor"] != vendor:
            continue
        image, truth = folder / f"{code}_sa.nii.gz", folder / f"{code}_sa_gt.nii.gz"
        wanted = (image,) if part == "target_train" else (image, truth)
        for path in wanted:
            if not path.is_file():
                raise InputError(f"{folder}: found {folders.listing(folder)}; wanted {path.name}.")
        for phase, frame in _frames(table[code], root).items():
            read = partial(read_volume, image, frame)
            label = labelled(part, partial(read_volume, truth, frame))
            cases.append(Case(f"{code}_{phase}", code, part, wanted, read, label))
    return cases


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_vendor"], request.choices["target_vendor"]
    if source == target:
        raise InputError(f"--source-vendor and --target-vendor: found {source} for both; wanted two vendors.")
    root = folders.find_root(request.folders["data"], ("Training", "Validation", "Testing"), OWNER.name)
    cases = _cases(root, "Training/Labeled", source, "source", request)
    for where in ("Training/Labeled", "Training/Unlabeled", "Validation"):
        cases += _cases(root, where, target, "target_train", request)
    cases += _cases(root, "Testing", target, "target_val", request)
    return Plan(
        title=f"M&Ms, vendor {source} ({VENDORS[source]}) to {target} ({VENDORS[target]})",
        tables={"source": TABLE, "target": TABLE},
        cases=tuple(cases),
        split=f"Source: labelled training cases of vendor {source}. Target: training and validation cases of vendor "
        f"{target} without their labels; its test cases for evaluation. Parts as the owners made them.",
        modality={"source": "MR", "target": "MR"},
        notes=("Two images a patient: end-diastole (ED) and end-systole (ES).",),
    )


RECIPES = (
    Recipe(
        name="mnms_vendor2vendor",
        title="ventricles and myocardium in cine MR, one scanner vendor to another",
        roles=(Role("data", (OWNER,), LAYOUT),),
        plan=_plan,
        labels="left ventricle, myocardium, right ventricle",
        split=SPLIT,
        choices=(
            # Vendors C and D have no labelled training cases.
            Choice("source_vendor", ("A", "B"), "A", "A Siemens, B Philips"),
            Choice("target_vendor", tuple(VENDORS), "B", "A Siemens, B Philips, C General Electric, D Canon"),
        ),
    ),
)
