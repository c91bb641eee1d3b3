# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A segmentation as a DICOM SEG object that refers to the slices it was made from; needs highdicom."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from dacal_med.deploy.runtime.codes import concept
from dacal_med.io.dicom import ENHANCED, Series
from dacal_med.io.dicom_files import quiet
from dacal_med.io.errors import InputError
from dacal_med.io.files import replacing

MANUFACTURER = "dacal_med"
_SERIES_NUMBER = 9001  # far from those of a scanner


def available() -> bool:
    """Whether highdicom is installed."""
    return find_spec("highdicom") is not None


def write(
    path: Path,
    labels: np.ndarray,
    series: Series,
    structures: Mapping[int, str],
    model_name: str,
    model_version: str,
    own_codes: Mapping[str, Any] | None = None,
) -> None:
    """Write a binary DICOM SEG, one segment for each structure.

    Args:
        path: the file.
        labels: ``(columns, rows, slices)``, class by voxel, in the order of the series' slices.
        series: what was segmented.
        structures: name by class, of those that get a segment; numbered in this order.
        model_name: who segmented.
        model_version: and which version.
        own_codes: the bundle's ``segment_codes``.

    Raises:
        InputError: it cannot be written, the series' headers lack what it needs, or the codes are malformed.
    """
    import highdicom as hd
    from pydicom.sr.codedict import codes

    algorithm = hd.AlgorithmIdentificationSequence(
        name=model_name[:64], family=codes.DCM.ArtificialIntelligence, version=model_version
    )
    segments = []
    for number, name in enumerate(structures.values(), 1):
        meaning = concept(name, own_codes)
        description = hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=meaning.category,
            segmented_property_type=meaning.type,
            algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        if meaning.side is not None:
            side = hd.sr.CodedConcept.from_code(meaning.side)
            description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [side]
        segments.append(description)
    if list(structures) != list(range(1, len(structures) + 1)):
        # Segments are numbered from 1 without gaps; where the first class is the background, classes are too.
        numbers = np.zeros(256, np.uint8)
        numbers[list(structures)] = range(1, len(structures) + 1)
        labels = numbers[labels]
    frames = labels.transpose(2, 1, 0)
    sources = [_complete(header) for header in series.headers()]
    if str(sources[0].get("SOPClassUID", "")) in ENHANCED:
        # A multi-frame object is segmented in the order of its own frames.
        order = np.argsort([item.frame for item in series.slices])
        frames = frames[order]
    with quiet(), replacing(path, ".dcm") as temporary:
        segmentation = _build(
            hd.seg.Segmentation,
            source_images=sources,
            pixel_array=np.ascontiguousarray(frames),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=hd.UID(),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=model_name[:64],
            software_versions=model_version,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=f"By {model_name}"[:64],
            series_description=f"{model_name} {model_version}"[:64],
            omit_empty_frames=bool(labels.any()),
        )
        segmentation.save_as(temporary)


def _build(kind: Any, **content: Any) -> Any:
    try:
        return kind(**content)
    except Exception as error:  # highdicom raises whatever an incomplete header leads it to
        cause = f"{type(error).__name__}: {error}"
        raise InputError(f"DICOM SEG cannot be made ({cause}); --dicom_seg false leaves it out") from error


# May be empty in an image, so that what anonymises removes them; highdicom wants them there.
_MAY_BE_EMPTY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator"),
)


def _complete(header: Dataset) -> Dataset:
    for keyword in _MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    return header
