# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Cases are found in any folder tree, and their names tell nothing about a patient."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image

from dacal_med.io.discovery import discover
from dacal_med.io.errors import InputError
from tests.deploy.runtime.builders import NAME, PATIENT, ball, change, write_series
from tests.fuzz.outcomes import in_time
from tests.io.test_dicom import AXIAL


def nifti(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(ball((4, 4, 4)), np.eye(4)), path)


def test_many_series_wherever_their_files_lie(tmp_path: Path):
    first = write_series(tmp_path / "one", ball((4, 4, 3)), AXIAL, series="1.2.3.4.5.2")
    second = write_series(tmp_path / "two" / "deep", ball((4, 4, 4)), AXIAL, series="1.2.3.4.5.1")
    moved = tmp_path / "two" / first[0].name.replace(".dcm", "")
    first[0].rename(moved)
    nifti(tmp_path / "z" / "Doe.nii.gz")
    (tmp_path / "notes.txt").write_text("nothing to segment")
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "screenshot.png")
    sources = discover(tmp_path, 3, identify=False)
    assert [(source.name, source.files) for source in sources] == [
        ("case_0001", (tmp_path / "z" / "Doe.nii.gz",)),
        ("case_0002", tuple(second)),
        ("case_0003", (*first[1:], moved)),
    ]


def test_names_if_asked_for(tmp_path: Path):
    write_series(tmp_path / "a", ball((4, 4, 3)), AXIAL)
    write_series(tmp_path / "b", ball((4, 4, 3)), AXIAL)
    nifti(tmp_path / "sub 01.nii.gz")
    names = [source.name for source in discover(tmp_path, 3, identify=True)]
    assert names == ["sub-01", f"{PATIENT}_3", f"{PATIENT}_3_2"]


def test_what_is_no_image_is_left_out(tmp_path: Path):
    files = write_series(tmp_path, ball((4, 4, 3)), AXIAL)
    segmentation = pydicom.dcmread(files[0])
    segmentation.SOPClassUID, segmentation.SeriesInstanceUID = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.9"
    segmentation.save_as(tmp_path / "seg.dcm")
    change(tmp_path / "seg.dcm", SeriesNumber=9)
    report = pydicom.dcmread(files[0])
    del report.Rows, report.PixelData
    report.SeriesInstanceUID = "1.2.8"
    report.save_as(tmp_path / "report.dcm")
    (source,) = discover(tmp_path, 3, identify=False)
    assert source.files == tuple(files)


def test_results_of_an_earlier_run_are_no_input(tmp_path: Path):
    nifti(tmp_path / "a.nii")
    nifti(tmp_path / "out" / "case_0001_seg.nii.gz")
    nifti(tmp_path / ".hidden" / "b.nii")
    assert len(discover(tmp_path, 3, identify=False, skip=tmp_path / "out")) == 1


def test_damaged_dicom_is_a_case_of_its_own(tmp_path: Path):
    write_series(tmp_path, ball((4, 4, 3)), AXIAL)
    (tmp_path / "broken.dcm").write_bytes(b"nothing")
    assert [len(source.files) for source in discover(tmp_path, 3, identify=False)] == [3, 1]


def test_one_file(tmp_path: Path):
    nifti(tmp_path / "a.nii.gz")
    nifti(tmp_path / "b.nii.gz")
    (source,) = discover(tmp_path / "b.nii.gz", 3, identify=False)
    assert source.files == (tmp_path / "b.nii.gz",)


def test_a_pipe_is_not_waited_for(tmp_path: Path):
    nifti(tmp_path / "a.nii.gz")
    for name in ("pipe", "pipe.dcm", "pipe.nii.gz"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "gone.dcm").symlink_to(tmp_path / "nowhere")  # told when it is read
    with in_time():
        sources = discover(tmp_path, 3, identify=True)
        assert [source.name for source in sources] == ["a", "series"]
        with pytest.raises(InputError, match="found a pipe, socket or device"):
            discover(tmp_path / "pipe.nii.gz", 3, identify=False)


def test_names_are_short_enough_for_results_and_never_the_same(tmp_path: Path):
    long = "x" * 240
    for name in (f"{long}1", f"{long}2", "a b", "a_b", "a-b", "a-b_2", "summary"):
        nifti(tmp_path / f"{name}.nii")
    names = [source.name for source in discover(tmp_path, 3, identify=True)]
    assert len(set(names)) == len(names) == 7
    assert "summary" not in names
    assert max(map(len, names)) == 122  # with "_2"
    assert {"a-b", "a-b_2", "a_b", "summary_2"} < set(names)


def test_nothing_to_do(tmp_path: Path):
    with pytest.raises(InputError, match="no such file or folder"):
        discover("x" * 5000, 3, identify=False)
    with pytest.raises(InputError, match="no such file or folder"):
        discover(tmp_path / "absent", 3, identify=False)
    nifti(tmp_path / "a.nii.gz")
    with pytest.raises(InputError, match=r"found 1 file\(s\), none that this model can read; wanted PNG"):
        discover(tmp_path, 2, identify=False)


def test_messages_of_libraries_are_cleaned(tmp_path: Path):
    files = write_series(tmp_path / NAME.replace("^", "_"), ball((4, 4, 3)), AXIAL)
    uid = pydicom.dcmread(files[0]).SeriesInstanceUID
    (source,) = discover(tmp_path, 3, identify=False)
    text = f"{files[1]}: {NAME} ({PATIENT}), Doe, {uid}, {files[2].name}"
    cleaned = source.clean(text)
    for secret in ("Doe", "Jane", PATIENT, uid, str(tmp_path), "IM0003"):
        assert secret not in cleaned
    (named,) = discover(tmp_path, 3, identify=True)
    assert named.clean(text) == text
    assert (source.file_name(1), named.file_name(1)) == ("file 2 of 3", "Doe_Jane/IM0002.dcm")
