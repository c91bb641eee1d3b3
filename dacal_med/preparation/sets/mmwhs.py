# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""MM-WHS 2017: the heart in CT and MR, the four classes and the split of PnP-AdaNet and SIFA, both directions.

Label values are those of the challenge. 421, which is no documented value, occurs in one MR label and is read as 420 by
all public code that we saw. The test cases are those in the ``test_ct_image&labels`` and ``test_mr_image&labels`` that
Dou et al. published with PnP-AdaNet (IEEE Access 7, 2019, doi 10.1109/ACCESS.2019.2929258) and that SIFA (Chen et al.,
IEEE TMI 39, 2020, doi 10.1109/TMI.2020.2972701) reuses; their ids are confirmed by public code, not by a list of
theirs. Both works crop and resample, which is left to the bundle here; scores are therefore not the published setting.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Owner, Recipe, Request, Role

OWNER = Owner(
    name="MM-WHS 2017",
    url="https://zmiclab.github.io/zxh/0/mmwhs/",
    licence="for research, after registration with the organisers",
    citation="Zhuang and Shen, Med Image Anal 31 (2016) 77, doi 10.1016/j.media.2016.02.006; Zhuang et al., Med Image "
    "Anal 58 (2019) 101537, doi 10.1016/j.media.2019.101537",
)
TABLE = LabelTable.of(
    (0, "background", 0, "background"),
    (205, "myocardium of the left ventricle", 1, "myocardium"),
    (420, "left atrium blood cavity", 2, "left atrium"),
    (421, "left atrium blood cavity, stray value", 2, "left atrium"),
    (500, "left ventricle blood cavity", 3, "left ventricle"),
    (820, "ascending aorta", 4, "ascending aorta"),
    (550, "right atrium blood cavity", 0, "background"),
    (600, "right ventricle blood cavity", 0, "background"),
    (850, "pulmonary artery", 0, "background"),
)
TEST_IDS = {"ct": frozenset({"1003", "1008", "1014", "1019"}), "mr": frozenset({"1007", "1009", "1018", "1019"})}
TRAINING_IDS = tuple(str(number) for number in range(1001, 1021))
LAYOUT = (
    "the folders ct_train and mr_train, with ct_train_1001_image.nii.gz, ct_train_1001_label.nii.gz ... 1020, and "
    "mr_train_1001_image.nii.gz ... 1020 (the 40 test scans have no labels and are not used)"
)
SPLIT = "test cases of PnP-AdaNet and SIFA: CT 1003, 1008, 1014, 1019; MR 1007, 1009, 1018, 1019"


def _pairs(root: Path, domain: str, *, incomplete: bool) -> dict[str, tuple[Path, Path]]:
    folder = root / f"{domain}_train"
    images = folders.matching(folder, rf"{domain}_train_(\d+)_image\.nii(?:\.gz)?")
    labels = folders.matching(folder, rf"{domain}_train_(\d+)_label\.nii(?:\.gz)?")
    folders.require_same(images, labels, folder, "training scan")
    folders.require_all(images, TRAINING_IDS, folder, f"{domain.upper()} scan(s)", partial=incomplete)
    return {key: (images[key], labels[key]) for key in images}


def _case(domain: str, key: str, pair: tuple[Path, Path], part: Part) -> Case:
    image, label = pair
    return Case(
        name=f"{domain}_{key}",
        patient=f"{domain}_{key}",
        part=part,
        inputs=(image, label),
        image=image,
        label=labelled(part, partial(read_volume, label)),
    )


def _plan(source: str, target: str, request: Request) -> Plan:
    root = folders.find_root(request.folders["data"], ("ct_train", "mr_train"), OWNER.name)
    cases = [
        _case(source, key, pair, "source")
        for key, pair in _pairs(root, source, incomplete=request.partial).items()
        if key not in TEST_IDS[source]
    ]
    pairs = _pairs(root, target, incomplete=request.partial)
    cases += [_case(target, key, pair, "target_train") for key, pair in pairs.items() if key not in TEST_IDS[target]]
    cases += [_case(target, key, pair, "target_val") for key, pair in pairs.items() if key in TEST_IDS[target]]
    return Plan(
        title=f"MM-WHS, {source.upper()} to {target.upper()}",
        tables={"source": TABLE, "target": TABLE},
        cases=tuple(cases),
        split=f"Source: the 16 {source.upper()} scans that are not test cases. {target.upper()}: 16 for training, 4 "
        f"for evaluation. Published: {SPLIT}. CT and MR are of different patients.",
        modality={"source": source.upper(), "target": target.upper()},
        notes=(
            "Right atrium, right ventricle and pulmonary artery are background, as in PnP-AdaNet and SIFA.",
            "Whole volumes; the published works crop to the heart and resample to 256 x 256 coronal slices.",
        ),
    )


RECIPES = tuple(
    Recipe(
        name=f"mmwhs_{source}2{target}",
        title=f"four cardiac structures, {source.upper()} to {target.upper()}",
        roles=(Role("data", (OWNER,), LAYOUT),),
        plan=partial(_plan, source, target),
        labels="myocardium, left atrium, left ventricle, ascending aorta",
        split=SPLIT,
    )
    for source, target in (("ct", "mr"), ("mr", "ct"))
)
