# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""DICOM series as volumes: geometry as SimpleITK and the affine that was written say, and what is refused."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import HTJ2KLossless, JPEGLSLossless, MultiFrameGrayscaleWordSecondaryCaptureImageStorage, RLELossless

from dacal_med.io.dicom import open_series
from dacal_med.io.errors import InputError
from dacal_med.io.image import Image
from tests.deploy.runtime.builders import LPS, ball, change, oblique, right_handed, write_enhanced, write_series

AXIAL = np.array([[-0.8, 0, 0, 40.0], [0, -0.9, 0, 35.0], [0, 0, 2.5, -80.0], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, 3.0, -20.0], [-1.1, 0, 0, 30.0], [0, -0.7, 0, 50.0], [0, 0, 0, 1]])


def read(files: list[Path]) -> Image:
    opened = open_series(files, "the series", lambda index: f"file {index + 1}")
    return Image(opened.voxels(), opened.header)


def by_sitk(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Array ``(columns, rows, slices)`` and RAS affine as SimpleITK reads them."""
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image = reader.Execute()
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS @ affine


@pytest.mark.parametrize("reverse", [False, True], ids=["ordered", "reversed"])
@pytest.mark.parametrize("affine", [AXIAL, SAGITTAL, oblique()], ids=["axial", "sagittal", "oblique"])
def test_geometry_is_that_of_simpleitk(tmp_path: Path, affine: np.ndarray, reverse: bool):
    array = ball((7, 6, 5))
    files = write_series(tmp_path, array, affine, "CT", reverse=reverse, intercept=-1024)
    volume = read(files)
    wanted, wanted_affine = by_sitk(tmp_path)
    np.testing.assert_array_equal(volume.array[0], wanted)
    np.testing.assert_allclose(volume.header.affine, wanted_affine, atol=1e-6)
    own, own_affine = right_handed(array, affine)
    np.testing.assert_array_equal(volume.array[0], own)
    np.testing.assert_allclose(volume.header.affine, own_affine, atol=1e-6)
    assert (volume.array.dtype, volume.header.modality, volume.header.notes) == (np.int16, "CT", ())


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    sizes=st.tuples(*[st.floats(0.3, 5)] * 3),
    order=st.permutations(range(4)),
)
def test_a_rotated_series_comes_back(tmp_path: Path, angles, sizes, order):
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * np.array(sizes), [10, -20, 30]
    files = write_series(tmp_path, ball((3, 4, 4)), affine)
    volume = read([files[index] for index in order])
    own, own_affine = right_handed(ball((3, 4, 4)), affine)
    np.testing.assert_array_equal(volume.array[0], own)
    np.testing.assert_allclose(volume.header.affine, own_affine, atol=1e-5)


def test_a_gantry_tilt_is_in_the_affine(tmp_path: Path):
    tilted = AXIAL.copy()
    tilted[1, 2] = 2.5 * np.tan(np.radians(12))
    array = ball((6, 5, 4))
    volume = read(write_series(tmp_path, array, tilted))
    own, own_affine = right_handed(array, tilted)
    np.testing.assert_array_equal(volume.array[0], own)
    np.testing.assert_allclose(volume.header.affine, own_affine, atol=1e-6)
    assert re.search(r"tilted by 12\.0 degrees", volume.header.notes[0])


def test_slopes_of_slices_differ(tmp_path: Path):
    array = ball((4, 5, 3))
    files = write_series(tmp_path, array, AXIAL)
    change(files[1], RescaleSlope="0.5")
    volume = read(files)
    own, _ = right_handed(array, AXIAL)
    np.testing.assert_allclose(volume.array[0], own * np.array([1, 0.5, 1]), rtol=1e-6)


@pytest.mark.parametrize("affine", [AXIAL, oblique()], ids=["axial", "oblique"])
def test_enhanced_multi_frame(tmp_path: Path, affine: np.ndarray):
    array = ball((6, 5, 4))
    write_enhanced(tmp_path / "e.dcm", array, affine, [2, 0, 3, 1])
    volume = read([tmp_path / "e.dcm"])
    own, own_affine = right_handed(array, affine)
    np.testing.assert_array_equal(volume.array[0], own)
    np.testing.assert_allclose(volume.header.affine, own_affine, atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_compressed_slices(tmp_path: Path, syntax: pydicom.uid.UID):
    array = np.abs(ball((16, 12, 3)))
    files = write_series(tmp_path, array, AXIAL)
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.PixelRepresentation = 0
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(file)
    np.testing.assert_array_equal(read(files).array[0], right_handed(array, AXIAL)[0])


def test_a_syntax_without_decoder_is_named(tmp_path: Path):
    files = write_series(tmp_path, ball((4, 4, 3)), AXIAL)
    dataset = pydicom.dcmread(files[1])
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0" * 64])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = HTJ2KLossless
    dataset.save_as(files[1])
    with pytest.raises(InputError, match=r"file 2: pixels of transfer syntax High-Throughput JPEG 2000.* install"):
        read(files)


def refused(files: list[Path], match: str) -> None:
    with pytest.raises(InputError, match=match):
        read(files)


def test_missing_and_duplicate_slices(tmp_path: Path):
    files = write_series(tmp_path / "a", ball((4, 4, 6)), AXIAL)
    refused(files[:3] + files[4:], r"5 mm between file 3 and file 4 where others are 2\.5 mm")
    change(files[2], ImagePositionPatient=pydicom.dcmread(files[3]).ImagePositionPatient)
    refused(files, "file 3 and file 4 lie at the same place")
    refused(files[:1], r"found 1 slice\(s\)")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "file 3: has another direction than file 1"),
        ({"PixelSpacing": [0.5, 0.5]}, "file 3: has another pixel spacing"),
        ({"FrameOfReferenceUID": "1.2.3.4.5.6"}, "file 3: has another frame of reference"),
        ({"Rows": 3}, "file 3: has another size"),
        ({"ImagePositionPatient": None}, "file 3: found no ImagePositionPatient"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "file 3: found photometric interpretation MONOCHROME1"),
        ({"ImagePositionPatient": [-38.0, -35.0, -75.0]}, "file 3: lies 2 mm off the line"),
        ({"PixelData": None}, "file 3: found no pixel data"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_slices_that_do_not_fit(tmp_path: Path, values: dict, match: str):
    files = write_series(tmp_path, ball((4, 4, 6)), AXIAL)
    change(files[2], **values)
    refused(files, match)


def test_other_multi_frame_objects(tmp_path: Path):
    files = write_series(tmp_path, ball((4, 4, 2)), AXIAL)
    dataset = pydicom.dcmread(files[0])
    dataset.NumberOfFrames = 2
    dataset.SOPClassUID = MultiFrameGrayscaleWordSecondaryCaptureImageStorage
    dataset.save_as(files[0])
    refused([files[0]], "file 1: found 2 frames of class Multi-frame Grayscale Word Secondary Capture")


def test_truncated_files(tmp_path: Path):
    files = write_series(tmp_path, ball((20, 20, 3)), AXIAL)
    whole = files[1].read_bytes()
    files[1].write_bytes(whole[:-300])
    refused(files, "file 2: pixels of transfer syntax Explicit VR Little Endian cannot be decoded")
    files[1].write_bytes(b"no DICOM at all")
    refused(files, "file 2: cannot be read as DICOM")


def test_pydicom_does_not_quote_headers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
):
    files = write_series(tmp_path, ball((4, 4, 3)), AXIAL)
    for file in files:
        file.write_bytes(file.read_bytes().replace(b"19700101", b"Doe Jane"))
    with caplog.at_level(logging.DEBUG):
        read(files)
    assert "Doe" not in caplog.text
    assert not [warning for warning in recwarn if "Doe" in str(warning.message)]
