# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""AMOS 2022: abdominal organs in CT and MR, both directions.

Cases 1 to 500 are CT, 501 to 600 MR. Training and validation cases have labels; the owners' split is kept: training
cases of the source, training cases of the target without labels, validation cases of the target. Bladder and
prostate/uterus become background, because MR hardly reaches them; that they are labelled in CT alone was not confirmed.
"""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Owner, Recipe, Request, Role

OWNER = Owner(
    name="AMOS 2022",
    url="https://zenodo.org/records/7262581",
    licence="CC BY-NC-SA, as stated with the paper; see also the record on Zenodo",
    citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image Segmentation, "
    "NeurIPS 2022 Datasets and Benchmarks, arXiv 2206.08023; data: doi 10.5281/zenodo.7262581",
)
_ORGANS = (
    *("spleen", "right kidney", "left kidney", "gall bladder", "esophagus", "liver", "stomach", "aorta", "postcava"),
    *("pancreas", "right adrenal gland", "left adrenal gland", "duodenum"),
)
TABLE = LabelTable.of(
    (0, "background", 0, "background"),
    *((value, name, value, name) for value, name in enumerate(_ORGANS, start=1)),
    (14, "bladder", 0, "background"),
    (15, "prostate/uterus", 0, "background"),
)
LAST_CT = 500
LAYOUT = "amos22/dataset.json with imagesTr, labelsTr, imagesVa, labelsVa (amos_0001.nii.gz ...)"
SPLIT = "the owners': 'training' of the source and of the target, 'validation' of the target for evaluation"


def _cases(root: Path, key: str, domain: str, part: Part, *, incomplete: bool) -> list[Case]:
    listed = _listed(root / "dataset.json", key)
    wanted = [row for row in listed if ("ct" if _number(row["image"], root) <= LAST_CT else "mr") == domain]
    there = [row for row in wanted if all((root / name).is_file() for name in row.values())]
    missing = [row["image"] for row in wanted if row not in there]
    folders.require_all([], missing, root, "image or label of", partial=incomplete)
    return [_case(root, row, part) for row in there]


def _case(root: Path, row: dict[str, str], part: Part) -> Case:
    image, label = root / row["image"], root / row["label"]
    name = f"amos_{_number(row['image'], root):04d}"
    return Case(name, name, part, (image, label), image, labelled(part, partial(read_volume, label)))


def _listed(path: Path, key: str) -> list[dict[str, str]]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); wanted the owners' list of cases.") from error
    rows = content.get(key) if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) and {"image", "label"} <= set(row) for row in rows):
        raise InputError(f"{path}: found no list '{key}' of images and labels; wanted that of AMOS.")
    return [{"image": str(row["image"]), "label": str(row["label"])} for row in rows]


def _number(image: str, root: Path) -> int:
    match = re.search(r"amos_(\d+)\.nii(\.gz)?$", image)
    if match is None:
        raise InputError(f"{root / 'dataset.json'}: found {image}; wanted names such as amos_0001.nii.gz.")
    return int(match.group(1))


def _plan(source: str, target: str, request: Request) -> Plan:
    root = folders.find_root(request.folders["data"], ("dataset.json", "imagesTr", "labelsTr", "labelsVa"), OWNER.name)
    take = partial(_cases, root, incomplete=request.partial)
    return Plan(
        title=f"AMOS, {source.upper()} to {target.upper()}",
        tables={"source": TABLE, "target": TABLE},
        cases=(
            *take("training", source, "source"),
            *take("training", target, "target_train"),
            *take("validation", target, "target_val"),
        ),
        split=f"The owners' lists in dataset.json: 'training' {source.upper()} is the source, 'training' "
        f"{target.upper()} the target, 'validation' {target.upper()} for evaluation. AMOS gives no patient ids: every "
        "case counts as a patient of its own.",
        modality={"source": source.upper(), "target": target.upper()},
        notes=("Bladder and prostate/uterus are background in both domains.",),
    )


RECIPES = tuple(
    Recipe(
        name=f"amos_{source}2{target}",
        title=f"13 abdominal organs, {source.upper()} to {target.upper()}",
        roles=(Role("data", (OWNER,), LAYOUT),),
        plan=partial(_plan, source, target),
        labels=", ".join(_ORGANS),
        split=SPLIT,
    )
    for source, target in (("ct", "mr"), ("mr", "ct"))
)
