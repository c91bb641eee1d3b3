# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A DICOM SEG is read back by highdicom: every frame on the slice it belongs to."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.sr.codedict import codes

from dacal_med.deploy.runtime import dicom_seg
from dacal_med.deploy.runtime.codes import DEFAULT, concept
from dacal_med.io.dicom import Series, open_series
from dacal_med.io.errors import InputError
from tests.deploy.runtime.builders import LPS, NAME, ball, change, oblique, write_enhanced, write_series
from tests.io.test_dicom import AXIAL, SAGITTAL

NAMES = ("background", "left kidney", "vertebra", "tumour")


def tilted() -> np.ndarray:
    affine = AXIAL.copy()
    affine[1, 2] = 0.6
    return affine


def labels_of(shape: tuple[int, ...]) -> np.ndarray:
    """Other labels on every slice; class 2 nowhere on the first."""
    labels = np.random.default_rng(1).integers(0, 4, shape).astype(np.uint8)
    labels[..., 0][labels[..., 0] == 2] = 0
    return np.asfortranarray(labels)


def written(path: Path, labels: np.ndarray, series: Series) -> hd.seg.Segmentation:
    dicom_seg.write(path, labels, series, dict(enumerate(NAMES[1:], 1)), "A model", "1.2")
    return hd.seg.segread(path)


def frames_by_position(segmentation: hd.seg.Segmentation) -> dict[tuple[int, tuple[float, ...]], np.ndarray]:
    """``{(segment, position): frame}`` from the object's own functional groups, read with pydicom alone."""
    found = {}
    pixels = segmentation.pixel_array
    for group, frame in zip(segmentation.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        position = group.PlanePositionSequence[0].ImagePositionPatient
        found[(int(number), tuple(round(float(value), 3) for value in position))] = frame
    return found


@pytest.mark.parametrize("reverse", [False, True], ids=["ordered", "reversed"])
@pytest.mark.parametrize(
    "affine", [AXIAL, SAGITTAL, oblique(), tilted()], ids=["axial", "sagittal", "oblique", "tilted"]
)
def test_frames_lie_on_their_slices(tmp_path: Path, affine: np.ndarray, reverse: bool):
    files = write_series(tmp_path / "s", ball((7, 6, 5)), affine, "CT", reverse=reverse)
    volume = open_series(files, "s", str).header
    labels = labels_of(volume.shape)
    segmentation = written(tmp_path / "seg.dcm", labels, volume.series)
    frames = frames_by_position(segmentation)
    lps = LPS @ volume.affine
    seen = 0
    for index in range(volume.shape[2]):
        position = tuple(round(float(value), 3) for value in (lps @ [0, 0, index, 1])[:3])
        uid = pydicom.dcmread(volume.series.files[volume.series.slices[index].file]).SOPInstanceUID
        for number in (1, 2, 3):
            wanted = (labels[..., index] == number).T
            if wanted.any():
                np.testing.assert_array_equal(frames[(number, position)], wanted)
                seen += 1
        mask = segmentation.get_pixels_by_source_instance([uid], combine_segments=True, ignore_spatial_locations=False)
        np.testing.assert_array_equal(mask[0], labels[..., index].T)
    assert seen == len(frames)


def test_frames_of_an_enhanced_object(tmp_path: Path):
    write_enhanced(tmp_path / "e.dcm", ball((6, 5, 4)), oblique(), [2, 0, 3, 1])
    volume = open_series([tmp_path / "e.dcm"], "s", str).header
    labels = labels_of(volume.shape)
    frames = frames_by_position(written(tmp_path / "seg.dcm", labels, volume.series))
    lps = LPS @ volume.affine
    for (number, position), frame in frames.items():
        index = round(float((np.linalg.inv(lps) @ [*position, 1])[2]))
        np.testing.assert_array_equal(frame, (labels[..., index] == number).T)
    assert len(frames) == sum(bool((labels[..., k] == n).any()) for k in range(4) for n in (1, 2, 3))


@pytest.mark.parametrize("structures", [(0, 1, 2, 3), (0, 2, 3)], ids=["no background", "class 1 is background"])
def test_segments_are_the_structures_wherever_the_background_is(tmp_path: Path, structures: tuple[int, ...]):
    volume = open_series(write_series(tmp_path / "s", ball((7, 6, 5)), AXIAL, "CT"), "s", str).header
    labels = labels_of(volume.shape)
    names = {k: f"structure {k}" for k in structures}
    dicom_seg.write(tmp_path / "seg.dcm", labels, volume.series, names, "A model", "1.2")
    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    found = frames_by_position(segmentation)
    for number, k in enumerate(structures, 1):
        assert segmentation.get_segment_description(number).segment_label == names[k]
        assert sum(int(frame.sum()) for (n, _), frame in found.items() if n == number) == int((labels == k).sum())
    lps = LPS @ volume.affine
    for (number, position), frame in found.items():
        index = round(float((np.linalg.inv(lps) @ [*position, 1])[2]))
        np.testing.assert_array_equal(frame, (labels[..., index] == structures[number - 1]).T)


def test_what_it_says(tmp_path: Path):
    files = write_series(tmp_path / "s", ball((7, 6, 5)), AXIAL, "CT")
    source = pydicom.dcmread(files[0])
    volume = open_series(files, "s", str).header
    segmentation = written(tmp_path / "seg.dcm", labels_of(volume.shape), volume.series)
    assert segmentation.StudyInstanceUID == source.StudyInstanceUID
    assert segmentation.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert segmentation.PatientName == NAME
    assert segmentation.ReferencedSeriesSequence[0].SeriesInstanceUID == source.SeriesInstanceUID
    assert segmentation.number_of_segments == 3
    kidney, unknown, tumour = (segmentation.get_segment_description(number) for number in (1, 2, 3))
    assert kidney.segment_label == "left kidney"
    assert kidney.segmented_property_type == codes.SCT.Kidney
    side = kidney.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert side.CodeValue == codes.SCT.Left.value
    assert (unknown.segmented_property_category, unknown.segmented_property_type) == (DEFAULT.category, DEFAULT.type)
    assert tumour.segmented_property_category == codes.SCT.MorphologicallyAbnormalStructure
    assert tumour.algorithm_type == hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    (algorithm,) = tumour.SegmentationAlgorithmIdentificationSequence
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("A model", "1.2")


def test_nothing_found_is_a_segmentation_too(tmp_path: Path):
    volume = open_series(write_series(tmp_path / "s", ball((7, 6, 5)), AXIAL), "s", str).header
    segmentation = written(tmp_path / "seg.dcm", np.zeros(volume.shape, np.uint8, order="F"), volume.series)
    assert not segmentation.pixel_array.any()
    assert segmentation.number_of_segments == 3


REMOVED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID")
REMOVED += ("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "SeriesNumber", "Manufacturer")


def test_what_anonymisation_removes_is_not_missed(tmp_path: Path):
    files = write_series(tmp_path / "s", ball((7, 6, 5)), AXIAL)
    for file in files:
        change(file, **dict.fromkeys(REMOVED))
    volume = open_series(files, "s", str).header
    labels = labels_of(volume.shape)
    assert written(tmp_path / "seg.dcm", labels, volume.series).PatientName == ""
    change(files[0], StudyInstanceUID=None)
    with pytest.raises(InputError, match=r"DICOM SEG cannot be made .*StudyInstanceUID.*--dicom_seg false"):
        written(tmp_path / "other.dcm", labels, volume.series)
    assert not (tmp_path / "other.dcm").exists()


def test_codes_of_the_bundle_come_first():
    own = {"liver": {"category": ["1", "SCT", "c"], "type": ["2", "SCT", "t"], "side": "right"}}
    found = concept("liver", own)
    assert (found.category.value, found.type.meaning, found.side) == ("1", "t", codes.SCT.Right)
    assert concept("liver").type == codes.SCT.Liver
    assert concept("Right_Kidney") == concept("right kidney")
    for entry in ({"category": ["1", "SCT", "c"]}, "liver", {"category": ["1"], "type": ["2", "SCT", "t"]}):
        with pytest.raises(InputError, match="segment_codes of 'liver'"):
            concept("liver", {"liver": entry})


def test_every_known_code_is_in_the_tables():
    from dacal_med.deploy.runtime.codes import _KNOWN

    for name in _KNOWN:
        assert concept(name) != DEFAULT
        assert concept(name).type.scheme_designator == "SCT"
