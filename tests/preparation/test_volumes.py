# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Volumes: AMOS, the prostate sites, M&Ms, BraTS, Calgary-Campinas, the hippocampus."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dacal_med.io.errors import InputError
from dacal_med.preparation.sets import amos, brats, cc359, mnms, saml
from dacal_med.preparation.sets.hippocampus import BOX_MM, OASIS_TABLE, crop_around
from tests.conftest import ROOT
from tests.preparation.builders import AFFINE, affine_of, checked, holding, made, names, noise, save, values_of

SHAPE = (6, 5, 5)


def remapped(label: np.ndarray, original: np.ndarray, becomes: dict[int, int]) -> None:
    for value, wanted in becomes.items():
        assert (label[original == value] == wanted).all(), value
    assert set(np.unique(original)) <= set(becomes)


# AMOS


@pytest.fixture
def amos22(tmp_path: Path) -> Path:
    root = tmp_path / "amos22"
    lists: dict[str, list[dict[str, str]]] = {"training": [], "validation": []}
    for key, kind, numbers in (("training", "Tr", (1, 4, 507, 508)), ("validation", "Va", (8, 500, 501, 600))):
        for number in numbers:
            name = f"amos_{number:04d}.nii.gz"
            save(root / f"images{kind}" / name, noise(SHAPE, number))
            save(root / f"labels{kind}" / name, holding(list(range(1, 16)), SHAPE))
            lists[key].append({"image": f"./images{kind}/{name}", "label": f"./labels{kind}/{name}"})
    (root / "dataset.json").write_text(json.dumps({**lists, "test": []}))
    return root


@pytest.mark.parametrize(
    ("name", "source", "train", "val"),
    [
        ("amos_ct2mr", ["0001", "0004"], ["0507", "0508"], ["0501", "0600"]),
        ("amos_mr2ct", ["0507", "0508"], ["0001", "0004"], ["0008", "0500"]),
    ],
)
def test_amos(amos22: Path, tmp_path: Path, name: str, source: list[str], train: list[str], val: list[str]):
    data = made(name, {"data": amos22.parent}, tmp_path.parent / f"{tmp_path.name}_{name}")
    for part, wanted in ((data.source, source), (data.target_train, train), (data.target_val, val)):
        assert sorted(names(part)) == sorted(f"amos_{number}" for number in wanted)
    original = holding(list(range(1, 16)), SHAPE)
    becomes = {value: value if value <= 13 else 0 for value in range(16)}
    remapped(values_of(data.target_val[0]["label"]), original, becomes)
    assert data.class_names[10] == "pancreas" and len(data.class_names) == 14
    checked(data)


def test_amos_refuses_what_it_does_not_know(amos22: Path, tmp_path: Path):
    (amos22 / "labelsTr" / "amos_0507.nii.gz").unlink()
    with pytest.raises(InputError, match=r"amos22: missing image or label of \./imagesTr/amos_0507\.nii\.gz"):
        made("amos_ct2mr", {"data": amos22}, tmp_path / "out")
    assert len(made("amos_ct2mr", {"data": amos22}, tmp_path / "out", partial=True).target_train) == 1
    (amos22 / "dataset.json").write_text('{"training": 3}')
    with pytest.raises(InputError, match="found no list 'training' of images and labels"):
        made("amos_ct2mr", {"data": amos22}, tmp_path / "other")
    assert amos.LAST_CT == 500


# Prostate


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    for site, number in itertools.product(("RUNMC", "BMC"), range(5)):
        # One site writes the suffix with a capital.
        suffix = "Segmentation" if site == "BMC" else "segmentation"
        save(tmp_path / "sites" / site / f"Case{number:02d}.nii.gz", noise(SHAPE, number))
        save(tmp_path / "sites" / site / f"Case{number:02d}_{suffix}.nii.gz", holding([1, 2], SHAPE, np.uint8))
    return tmp_path / "sites"


def test_prostate(sites: Path, tmp_path: Path):
    data = made("prostate_site2site", {"data": sites}, tmp_path / "out", partial=True, target_site="BMC")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [5, 4, 1]
    assert {name.split("_")[0] for name in names((*data.target_train, *data.target_val))} == {"BMC"}
    for entry in (data.source[0], data.target_val[0]):
        remapped(values_of(entry["label"]), holding([1, 2], SHAPE), {0: 0, 1: 1, 2: 1})
    checked(data)


def test_prostate_refuses(sites: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"RUNMC: found 5 case\(s\); wanted 30"):
        made("prostate_site2site", {"data": sites}, tmp_path / "out", target_site="BMC")
    with pytest.raises(InputError, match="found RUNMC for both; wanted two sites"):
        made("prostate_site2site", {"data": sites}, tmp_path / "out", target_site="RUNMC")
    with pytest.raises(InputError, match=r"found BMC, RUNMC; wanted .* with RUNMC, HK"):
        made("prostate_site2site", {"data": sites}, tmp_path / "out", target_site="HK")
    with pytest.raises(InputError, match="found source_site = 'Home'; wanted one of RUNMC"):
        made("prostate_site2site", {"data": sites}, tmp_path / "out", source_site="Home")
    assert sum(saml.SITES.values()) == 116


# M&Ms


def cine(seed: int) -> np.ndarray:
    return noise((*SHAPE, 4), seed)


def cine_truth() -> np.ndarray:
    """Labels in frames 1 and 3 alone."""
    array = np.zeros((*SHAPE, 4), np.uint8)
    array[..., 1], array[..., 3] = holding([1, 2, 3], SHAPE), holding([3, 2, 1], SHAPE)
    return array


@pytest.fixture
def open_dataset(tmp_path: Path) -> Path:
    root = tmp_path / "OpenDataset"
    rows = [",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"]
    places = {"Training/Labeled": "AAB", "Training/Unlabeled": "C", "Validation": "BC", "Testing": "ABBC"}
    number = 0
    for place, vendors in places.items():
        for vendor in vendors:
            code = f"A{number}B{number}C{number}"
            save(root / place / code / f"{code}_sa.nii.gz", cine(number))
            save(root / place / code / f"{code}_sa_gt.nii.gz", cine_truth())
            rows.append(f"{number},{code},x,{vendor},1,1,{'3.0' if number else '3'},50,NOR,M,170,70")
            number += 1
    table = root / "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
    table.write_text("\n".join(rows))
    return root


def test_mnms(open_dataset: Path, tmp_path: Path):
    data = made("mnms_vendor2vendor", {"data": open_dataset}, tmp_path / "out", partial=True)
    assert names(data.source) == ["A0B0C0_ED", "A0B0C0_ES", "A1B1C1_ED", "A1B1C1_ES"]
    assert [case["patient"] for case in data.source] == ["A0B0C0", "A0B0C0", "A1B1C1", "A1B1C1"]
    assert names(data.target_train) == ["A2B2C2_ED", "A2B2C2_ES", "A4B4C4_ED", "A4B4C4_ES"]
    assert names(data.target_val) == ["A7B7C7_ED", "A7B7C7_ES", "A8B8C8_ED", "A8B8C8_ES"]
    np.testing.assert_array_equal(values_of(data.source[0]["image"]), cine(0)[..., 1])
    np.testing.assert_array_equal(values_of(data.source[1]["image"]), cine(0)[..., 3])
    np.testing.assert_array_equal(values_of(data.target_val[0]["label"]), cine_truth()[..., 1])
    np.testing.assert_array_equal(values_of(data.target_val[1]["label"]), cine_truth()[..., 3])
    np.testing.assert_allclose(affine_of(data.source[0]["image"]), AFFINE, atol=1e-5)
    assert data.class_names == ("background", "left ventricle", "myocardium", "right ventricle")
    checked(data)


def test_mnms_vendor_without_labels(open_dataset: Path, tmp_path: Path):
    data = made("mnms_vendor2vendor", {"data": open_dataset}, tmp_path / "out", partial=True, target_vendor="C")
    assert names(data.target_train)[::2] == ["A3B3C3_ED", "A5B5C5_ED"]
    assert "C (General Electric)" in data.name


def test_mnms_refuses(open_dataset: Path, tmp_path: Path):
    given = {"data": open_dataset}
    with pytest.raises(InputError, match=r"Training/Labeled: found 3 patient\(s\); wanted 150"):
        made("mnms_vendor2vendor", given, tmp_path / "out")
    table = next(open_dataset.glob("*.csv"))
    text = table.read_text()
    table.write_text(text.replace("A1B1C1", "Z9Z9Z9"))
    with pytest.raises(InputError, match="A1B1C1: found a patient that is not in the owners' table"):
        made("mnms_vendor2vendor", given, tmp_path / "out", partial=True)
    table.write_text(text.replace("A,1,1,3,", "A,1,1,9,"))
    with pytest.raises(InputError, match=r"A0B0C0_sa\.nii\.gz: found 4 frame\(s\); wanted frame 9, counted from 0"):
        made("mnms_vendor2vendor", given, tmp_path / "out", partial=True)
    table.write_text(text.replace(",ES,", ",End,"))
    with pytest.raises(InputError, match="found no column ES"):
        made("mnms_vendor2vendor", given, tmp_path / "other", partial=True)
    assert sum(mnms.COUNTS.values()) == 345


# BraTS


@pytest.fixture(params=["BraTS20_Training_%03d", "BraTS2021_%05d"])
def glioma(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    suffix = "nii" if "20_" in request.param else "nii.gz"
    root = tmp_path / "download" / "MICCAI_BraTS2020_TrainingData"
    for number in range(351, 361):
        name = request.param % number
        for index, contrast in enumerate(brats.CONTRASTS):
            save(root / name / f"{name}_{contrast}.{suffix}", noise(SHAPE, number + 1000 * index))
        odd = name == "BraTS20_Training_355"
        truth = "W39_1998.09.19_Segm.nii" if odd else f"{name}_seg.{suffix}"
        save(root / name / truth, holding([1, 2, 4], SHAPE))
    return tmp_path / "download"


def test_brats(glioma: Path, tmp_path: Path):
    data = made("brats_contrast2contrast", {"data": glioma}, tmp_path / "out", partial=True, source_contrast="t1ce")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [4, 4, 2]
    assert {name.rsplit("_", 1)[1] for name in names(data.source)} == {"t1ce"}
    assert {name.rsplit("_", 1)[1] for name in names((*data.target_train, *data.target_val))} == {"flair"}
    patients = [
        name.rsplit("_", 1)[0] for part in (data.source, data.target_train, data.target_val) for name in names(part)
    ]
    assert len(set(patients)) == 10
    remapped(values_of(data.source[0]["label"]), holding([1, 2, 4], SHAPE), {0: 0, 1: 1, 2: 2, 4: 3})
    number = int(patients[0][-3:])
    np.testing.assert_array_equal(values_of(data.source[0]["image"]), noise(SHAPE, number + 1000))
    checked(data)


@pytest.mark.parametrize(("source", "target"), [("t1", "t2"), ("flair", "t1ce")])
def test_brats_pairs_of_the_readme(glioma: Path, tmp_path: Path, source: str, target: str):
    data = made(
        "brats_contrast2contrast",
        {"data": glioma},
        tmp_path / "out",
        partial=True,
        source_contrast=source,
        target_contrast=target,
    )
    assert {name.rsplit("_", 1)[1] for name in names(data.source)} == {source}
    assert {name.rsplit("_", 1)[1] for name in names((*data.target_train, *data.target_val))} == {target}
    readme = (ROOT / "bundles" / "dacal_brats" / "docs" / "README.md").read_text()
    assert f"--source-contrast {source} --target-contrast {target} --out" in readme


def test_brats_whole_tumour(glioma: Path, tmp_path: Path):
    data = made("brats_contrast2contrast", {"data": glioma}, tmp_path / "out", partial=True, classes="whole")
    assert data.class_names == ("background", "whole tumour")
    remapped(values_of(data.target_val[0]["label"]), holding([1, 2, 4], SHAPE), {0: 0, 1: 1, 2: 1, 4: 1})


def test_brats_refuses(glioma: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"found 10 training case\(s\); wanted (369|1251)"):
        made("brats_contrast2contrast", {"data": glioma}, tmp_path / "out")
    for path in glioma.rglob("*353*flair*"):
        path.unlink()
    for path in glioma.rglob("*353*t2*"):
        path.unlink()
    with pytest.raises(InputError, match=r"353: found .*_seg.*; wanted .*353_(t2|flair)\.nii\.gz"):
        made("brats_contrast2contrast", {"data": glioma}, tmp_path / "out", partial=True)
    with pytest.raises(InputError, match="found nothing; wanted the folder of training cases"):
        (tmp_path / "empty").mkdir()
        made("brats_contrast2contrast", {"data": tmp_path / "empty"}, tmp_path / "out")


# Calgary-Campinas


def test_cc359(tmp_path: Path):
    root = tmp_path / "Reconstructed"
    scanners = [scanner for scanner in ("siemens_3", "siemens_15", "ge_15") for _ in range(5)]
    staple = np.linspace(0, 1, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)
    for number, scanner in enumerate(scanners):
        name = f"CC{number:04d}_{scanner}_{40 + number}_F"
        save(root / "Original" / f"{name}.nii.gz", noise(SHAPE, number))
        save(root / "STAPLE" / f"{name}_staple.nii.gz", staple)
    data = made("cc359_scanner2scanner", {"data": root}, tmp_path / "out", partial=True)
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [5, 4, 1]
    assert all("_siemens_3_" in name for name in names(data.source))
    assert all("_ge_15_" in name for name in names((*data.target_train, *data.target_val)))
    np.testing.assert_array_equal(values_of(data.target_val[0]["label"]), staple >= 0.5)
    checked(data)
    with pytest.raises(InputError, match=r"found 15 subject\(s\); wanted 359"):
        made("cc359_scanner2scanner", {"data": root}, tmp_path / "other")
    path = save(tmp_path / "odd.nii.gz", staple * 2)
    with pytest.raises(InputError, match="found values from 0 to 2; wanted probabilities"):
        cc359.read_consensus(path)


# Hippocampus

HEAD = (90, 80, 70)  # along the axes of the file: head-foot, right-left, back-front
HEAD_AFFINE = np.array([[0, -1.0, 0, 40], [0, 0, 1.0, -30], [-1.0, 0, 0, 45], [0, 0, 0, 1]])
BLOBS = {17: (slice(40, 48), slice(50, 60), slice(20, 45)), 53: (slice(40, 48), slice(18, 28), slice(20, 45))}


def head(labels: bool) -> np.ndarray:
    array = np.zeros(HEAD, np.int16) if labels else noise(HEAD)
    if labels:
        array[5:8, 5:8, 5:8], array[60:62, 60:62, 60:62] = 1002, 4
        for value, place in BLOBS.items():
            array[place] = value
    return array


@pytest.fixture
def brains(tmp_path: Path) -> dict[str, Path]:
    for number in range(1, 4):
        save(tmp_path / "msd" / "imagesTr" / f"hippocampus_{number:03d}.nii.gz", noise(SHAPE, number))
        save(tmp_path / "msd" / "labelsTr" / f"hippocampus_{number:03d}.nii.gz", holding([1, 2], SHAPE, np.uint8))
    for number in range(1, 6):
        name = f"OASIS-TRT-20-{number}"
        save(tmp_path / "volumes" / name / "t1weighted_brain.nii.gz", head(False), HEAD_AFFINE)
        save(tmp_path / "cma" / f"{name}_DKT31_CMA_labels.nii.gz", head(True).astype(np.float32), HEAD_AFFINE)
    return {"source": tmp_path / "msd", "target": tmp_path / "volumes", "target_labels": tmp_path / "cma"}


def test_hippocampus(brains: dict[str, Path], tmp_path: Path):
    data = made("hippocampus_msd2oasis", brains, tmp_path / "out", partial=True)
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [3, 6, 4]
    train, val = ({name.rsplit("_", 1)[0] for name in names(part)} for part in (data.target_train, data.target_val))
    assert not train & val
    remapped(values_of(data.source[0]["label"]), holding([1, 2], SHAPE), {0: 0, 1: 1, 2: 1})
    whole = nib.Nifti1Image(head(False), HEAD_AFFINE)
    middles = []
    for entry in data.target_val:
        image, label, affine = values_of(entry["image"]), values_of(entry["label"]), affine_of(entry["image"])
        assert image.shape == tuple(int(size) for size in BOX_MM)
        assert (label == 1).sum() == 8 * 10 * 25  # the whole of one hippocampus, and nothing of the other
        assert nib.aff2axcodes(affine) == ("R", "A", "S")
        # Every voxel still is where it was in the head.
        index = np.argwhere(label == 1)[0]
        there = np.linalg.inv(whole.affine) @ affine @ [*index, 1]
        np.testing.assert_allclose(there, np.round(there), atol=1e-4)
        place = tuple(np.round(there[:3]).astype(int))
        assert head(False)[place] == image[tuple(index)]
        assert head(True)[place] in (17, 53)
        middles.append(tuple(np.argwhere(label == 1).mean(0)))
    assert len(set(middles)) > 1
    checked(data)


def test_the_box_is_repeatable_and_moved(brains: dict[str, Path]):
    image = brains["target"] / "OASIS-TRT-20-1" / "t1weighted_brain.nii.gz"
    marks = brains["target_labels"] / "OASIS-TRT-20-1_DKT31_CMA_labels.nii.gz"
    first, again = (crop_around(image, marks, 17, False, (0, 1, 17)) for _ in range(2))
    np.testing.assert_array_equal(first.array, again.array)
    starts = {tuple(crop_around(image, marks, 17, False, (seed, 1, 17)).affine[:3, 3]) for seed in range(6)}
    assert len(starts) > 3
    with pytest.raises(InputError, match="found no voxel of value 99"):
        crop_around(image, marks, 99, False, (0,))
    save(marks, head(True), HEAD_AFFINE + np.eye(4))
    with pytest.raises(InputError, match="lies on another grid"):
        crop_around(image, marks, 17, False, (0,))


def test_hippocampus_refuses(brains: dict[str, Path], tmp_path: Path):
    with pytest.raises(InputError, match=r"found 3 labelled crop\(s\); wanted 260"):
        made("hippocampus_msd2oasis", brains, tmp_path / "out")
    (brains["target_labels"] / "OASIS-TRT-20-4_DKT31_CMA_labels.nii.gz").unlink()
    with pytest.raises(InputError, match="found no label for 4; wanted one for each subject"):
        made("hippocampus_msd2oasis", brains, tmp_path / "out", partial=True)
    with pytest.raises(InputError, match="wanted only"):
        OASIS_TABLE.remap(np.array([3000]), "file")
