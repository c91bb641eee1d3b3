# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""MM-WHS: every label value, the published test cases, what a wrong folder is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from dacal_med.cli import main
from dacal_med.io.errors import InputError
from tests.preparation.builders import AFFINE, affine_of, checked, hashes, holding, made, names, noise, save, values_of

VALUES = [205, 420, 421, 500, 820, 550, 600, 850]
BECOMES = {205: 1, 420: 2, 421: 2, 500: 3, 820: 4, 550: 0, 600: 0, 850: 0}
SHAPE = (6, 5, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "download"
    for domain, number in itertools.product(("ct", "mr"), range(1001, 1021)):
        stem = f"{domain}_train_{number}"
        save(root / f"{domain}_train" / f"{stem}_image.nii.gz", noise(SHAPE, number))
        save(root / f"{domain}_train" / f"{stem}_label.nii.gz", holding(VALUES, SHAPE))
        save(root / f"{domain}_test" / f"{domain}_test_{number + 1000}_image.nii.gz", noise(SHAPE, number))
    return root


def test_published_split_labels_and_geometry(folder: Path, tmp_path: Path):
    data = made("mmwhs_ct2mr", {"data": folder}, tmp_path / "out")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [16, 16, 4]
    assert names(data.target_val) == ["mr_1007", "mr_1009", "mr_1018", "mr_1019"]
    assert {"ct_1003", "ct_1008", "ct_1014", "ct_1019"}.isdisjoint(names(data.source))
    assert data.class_names == ("background", "myocardium", "left atrium", "left ventricle", "ascending aorta")
    assert data.modality == {"source": "CT", "target": "MR"}
    original = holding(VALUES, SHAPE)
    label = values_of(data.target_val[0]["label"])
    for value, becomes in BECOMES.items():
        assert (label[original == value] == becomes).all(), value
    assert (label[original == 0] == 0).all()
    np.testing.assert_array_equal(values_of(data.source[0]["image"]), noise(SHAPE, 1001))
    for entry in (*data.source, *data.target_val):
        np.testing.assert_allclose(affine_of(entry["image"]), AFFINE, atol=1e-5)
        np.testing.assert_array_equal(affine_of(entry["label"]), affine_of(entry["image"]))
    summary = checked(data)
    assert summary.label_voxels["left atrium"] == 20 * 5  # values 420 and 421: 2 + 3 voxels in each of 20 labels
    text = (tmp_path / "out" / "dataset.md").read_text()
    assert "| target_val | 4 | 4 | 420 | 4 | 20 | 16 | 20 |" in text
    assert "| 421 | left atrium blood cavity, stray value | 2 | left atrium |" in text
    assert "for research" in text and "10.1016/j.media.2016.02.006" in text


def test_the_other_direction(folder: Path, tmp_path: Path):
    data = made("mmwhs_mr2ct", {"data": folder}, tmp_path / "out")
    assert names(data.target_val) == ["ct_1003", "ct_1008", "ct_1014", "ct_1019"]
    assert {name[:2] for name in names(data.source)} == {"mr"}


def test_labels_of_target_train_are_not_copied(folder: Path, tmp_path: Path):
    made("mmwhs_ct2mr", {"data": folder}, tmp_path / "out")
    assert len(list((tmp_path / "out" / "target" / "labels").iterdir())) == 4


def test_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    before = hashes(folder)
    # The archive's own folder is found one level below the one given.
    assert main(["prepare", "mmwhs_ct2mr", "--data", str(folder.parent), "--out", str(tmp_path.parent / "made")]) == 0
    assert "| source | 16 | 16 |" in capsys.readouterr().out
    assert hashes(folder) == before


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no_mr", r"found ct_test, ct_train, mr_test; wanted MM-WHS 2017 with ct_train, mr_train"),
        ("no_label", r"mr_train: found no label for 1004; wanted one for each training scan"),
        ("no_scan", r"ct_train: missing CT scan\(s\) 1002, 1011; wanted all that the owner lists"),
    ],
)
def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path, damage: str, message: str):
    if damage == "no_mr":
        (folder / "mr_train").rename(tmp_path / "elsewhere")
    elif damage == "no_label":
        (folder / "mr_train" / "mr_train_1004_label.nii.gz").unlink()
    else:
        for path in [*folder.glob("ct_train/*1002*"), *folder.glob("ct_train/*1011*")]:
            path.unlink()
    with pytest.raises(InputError, match=message):
        made("mmwhs_ct2mr", {"data": folder}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_partial_download_can_be_prepared(folder: Path, tmp_path: Path):
    for path in folder.glob("ct_train/*1002*"):
        path.unlink()
    data = made("mmwhs_ct2mr", {"data": folder}, tmp_path / "out", partial=True)
    assert len(data.source) == 15
    assert "incomplete download" in (tmp_path / "out" / "dataset.md").read_text()


def test_unknown_label_values_are_refused(folder: Path, tmp_path: Path):
    path = folder / "mr_train" / "mr_train_1007_label.nii.gz"
    save(path, holding([205, 777], SHAPE))
    with pytest.raises(InputError, match=r"mr_train_1007_label\.nii\.gz: found the label value\(s\) \[777\.0\] in 2"):
        made("mmwhs_ct2mr", {"data": folder}, tmp_path / "out")
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_labels_beside_their_image_are_refused(folder: Path, tmp_path: Path):
    moved = AFFINE.copy()
    moved[0, 3] += 5.0
    save(folder / "mr_train" / "mr_train_1007_label.nii.gz", holding(VALUES, SHAPE), moved)
    with pytest.raises(InputError, match=r"mr_train_1007_label\.nii\.gz: lies up to 5 mm away"):
        made("mmwhs_ct2mr", {"data": folder}, tmp_path / "out")
