# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices in a datalist: seen as the volume that it is, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from dacal_med.io.errors import InputError
from dacal_med.io.reading import read_header, read_image
from tests.deploy.runtime.builders import ball, change, oblique, write_series
from tests.deploy.runtime.test_dicom_seg import tilted
from tests.io.test_dicom import AXIAL, SAGITTAL

ARRAY = ball((7, 6, 5))


@pytest.mark.parametrize("reverse", [False, True], ids=["ordered", "reversed"])
@pytest.mark.parametrize(
    "affine", [AXIAL, SAGITTAL, oblique(), tilted()], ids=["axial", "sagittal", "oblique", "tilted"]
)
def test_every_voxel_is_where_the_slices_say(tmp_path: Path, affine: np.ndarray, reverse: bool):
    write_series(tmp_path / "s", ARRAY, affine, reverse=reverse)
    image = read_image(tmp_path / "s")
    voxels, found = image.array, image.header.affine
    assert read_header(tmp_path / "s").shape == ARRAY.shape
    for index in np.ndindex(ARRAY.shape):
        place = np.linalg.inv(affine) @ found @ [*index, 1]
        np.testing.assert_allclose(place, np.round(place), atol=1e-4)
        assert voxels[(0, *index)] == ARRAY[tuple(np.round(place[:3]).astype(int))]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files[2].unlink(), "wanted evenly spaced slices, none missing"),
        (lambda files: change(files[2], PatientID="another"), "has another patient"),
        (
            lambda files: change(files[2], SeriesInstanceUID=generate_uid()),
            r"found 2 DICOM series .*; wanted a folder of one",
        ),
        (lambda files: change(files[2], FrameOfReferenceUID=generate_uid()), "another frame of reference"),
        (lambda files: [file.unlink() for file in files[1:]], r"found 1 slice\(s\)"),
    ],
    ids=["missing", "two patients", "two series", "two frames of reference", "one slice"],
)
def test_what_is_not_one_whole_series_is_refused(tmp_path: Path, spoil, said: str):
    spoil(write_series(tmp_path / "s", ARRAY, AXIAL))
    with pytest.raises(InputError, match=rf"{tmp_path / 's'}: .*{said}"):
        read_header(tmp_path / "s")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nii.gz")
    for read in (read_header, read_image):
        with pytest.raises(InputError, match=r"scan\.nii\.gz: found no regular file or folder"):
            read(tmp_path / "scan.nii.gz")
