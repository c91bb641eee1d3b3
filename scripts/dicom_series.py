# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Write axial DICOM series, for benchmarks of a site."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

STORAGE = {"CT": CTImageStorage, "MR": MRImageStorage}


def write_series(
    folder: Path,
    slices: Iterable[np.ndarray],
    voxel: Sequence[float],
    modality: str,
    origin: Sequence[float] = (0, 0, 0),
) -> None:
    """Write an axial series, one file a slice.

    Args:
        folder: where; made here.
        slices: of ``(rows, columns)``, in stored values that fit 16 bits with a sign; one at a time.
        voxel: distance of columns, of rows and of slices in mm.
        modality: ``"CT"`` or ``"MR"``.
        origin: position of the first voxel in mm (left, posterior, superior).
    """
    folder.mkdir(parents=True)
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for index, values in enumerate(slices):
        path = folder / f"{index:04d}.dcm"
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = STORAGE[modality], ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = generate_uid()
        image = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        image.SOPClassUID, image.SOPInstanceUID = STORAGE[modality], meta.MediaStorageSOPInstanceUID
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "", "", "", ""
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.StudyDate, image.StudyTime, image.StudyID, image.AccessionNumber = "", "", "", ""
        image.ReferringPhysicianName, image.Manufacturer, image.PositionReferenceIndicator = "", "", ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = modality, 1, index + 1
        image.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
        image.Rows, image.Columns = values.shape
        image.PixelSpacing = [float(voxel[1]), float(voxel[0])]
        image.SliceThickness = float(voxel[2])
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [*map(float, origin[:2]), float(origin[2]) + index * float(voxel[2])]
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept = 1, 0
        image.PixelData = np.ascontiguousarray(values).astype("<i2").tobytes()
        image.save_as(path, enforce_file_format=True)
