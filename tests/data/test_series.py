# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices in a datalist: seen as the volume that it is, or refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import generate_uid

from dacal_med.data.images import read_header, read_image
from dacal_med.data.series import check_series
from dacal_med.io.errors import InputError
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
    header = read_header(tmp_path / "s")
    voxels, found = read_image(tmp_path / "s")
    assert header.spatial_shape == ARRAY.shape
    for index in np.ndindex(ARRAY.shape):
        place = np.linalg.inv(affine) @ found @ [*index, 1]
        np.testing.assert_allclose(place, np.round(place), atol=1e-4)
        assert voxels[(0, *index)] == ARRAY[tuple(np.round(place[:3]).astype(int))]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files[2].unlink(), "wanted evenly spaced slices, none missing"),
        (lambda files: (files[0].parent / "x.dcm").write_bytes(files[2].read_bytes()), "lie at the same place"),
        (
            lambda files: change(files[2], SeriesInstanceUID=generate_uid()),
            r"found 2 series .*; wanted a folder of one",
        ),
        (lambda files: change(files[2], FrameOfReferenceUID=generate_uid()), "another frame of reference"),
        (lambda files: [file.unlink() for file in files[1:]], r"found 1 slice\(s\)"),
    ],
    ids=["missing", "twice", "two series", "two frames of reference", "one slice"],
)
def test_what_is_not_one_whole_series_is_refused(tmp_path: Path, spoil, said: str):
    spoil(write_series(tmp_path / "s", ARRAY, AXIAL))
    with pytest.raises(InputError, match=rf"{tmp_path / 's'}: .*{said}"):
        read_header(tmp_path / "s")


def test_a_volume_that_lies_elsewhere_is_refused(tmp_path: Path):
    write_series(tmp_path / "s", ARRAY, AXIAL)
    _, affine = read_image(tmp_path / "s")
    check_series(tmp_path / "s", ARRAY.shape, affine)
    with pytest.raises(InputError, match=r"found a volume of \(7, 6, 4\) voxels; wanted \(7, 6, 5\)"):
        check_series(tmp_path / "s", (7, 6, 4), affine)
    with pytest.raises(InputError, match="found a volume of"):
        check_series(tmp_path / "s", ARRAY.shape, None)
    moved = affine.copy()
    moved[0, 3] += 1.0
    with pytest.raises(InputError, match=r"lies up to 1 mm away from its slices"):
        check_series(tmp_path / "s", ARRAY.shape, moved)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nii.gz")
    for read in (read_header, read_image):
        with pytest.raises(InputError, match=r"scan\.nii\.gz: found no regular file or folder"):
            read(tmp_path / "scan.nii.gz")
