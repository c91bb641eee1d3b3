# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading image headers and voxels: NIfTI, NRRD, a DICOM series folder, PNG, JPEG and TIFF.

MONAI's readers do the reading; this file only turns whatever goes wrong into an error that names the file, and knows
how to look at a header without touching the voxels.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import torch
from monai.data.image_reader import ImageReader, NibabelReader, NrrdImage, NrrdReader, PILReader, PydicomReader
from monai.transforms import EnsureChannelFirst
from PIL import Image

from dacal_med.data.series import check_series
from dacal_med.io.errors import InputError
from dacal_med.io.volumes import check_length, unusable_affine

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd", ".seg.nrrd")
# Of NRRD, those that MONAI's transforms know; its reader turns the first into the second.
_SPACES = ("LPS", "RAS")


@dataclass(frozen=True)
class ImageHeader:
    """What a file says about its image before the voxels are read.

    Attributes:
        spatial_shape: size along each spatial axis, in the order of the file.
        channels: number of channels, 1 for a grey image or a volume.
        affine: voxel index to patient millimetres, ``(4, 4)``; None for pictures, which have no scale.
    """

    spatial_shape: tuple[int, ...]
    channels: int
    affine: np.ndarray | None

    def spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along the patient axes (right, anterior, superior); all ones for pictures."""
        dims = len(self.spatial_shape)
        if self.affine is None:
            return (1.0,) * dims
        sizes = np.linalg.norm(self.affine[:3, :3], axis=0)
        if dims < 3:
            return tuple(float(s) for s in sizes[:dims])
        # The axes of a file may come in any order; working spacings are compared after reorientation.
        patient_axis = nib.orientations.io_orientation(self.affine)[:, 0].astype(int)
        ordered = np.ones(3)
        ordered[patient_axis] = sizes
        return tuple(float(s) for s in ordered)


def is_picture(path: str | Path) -> bool:
    """Whether the file is a photograph-like format (PNG, JPEG, TIFF) with no millimetre scale."""
    return str(path).lower().endswith(PICTURE_SUFFIXES)


def reader_for(path: str | Path) -> ImageReader:
    """The MONAI reader for a file or a DICOM series folder.

    Raises:
        InputError: the suffix is none of those supported.
    """
    name = str(path).lower()
    if Path(path).is_dir() or name.endswith((".dcm", ".ima")):
        return PydicomReader()
    if name.endswith(NIFTI_SUFFIXES):
        return NibabelReader()
    if name.endswith(NRRD_SUFFIXES):
        return NrrdReader()
    if name.endswith(PICTURE_SUFFIXES):
        return PILReader()
    raise InputError(
        f"{path}: found a file type that cannot be read; wanted NIfTI (.nii, .nii.gz), NRRD (.nrrd), "
        "a DICOM series folder, PNG, JPEG or TIFF."
    )


def read_image(path: str | Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read every voxel of an image.

    Args:
        path: file, or folder holding one DICOM series.

    Returns:
        The array ``(C, *spatial)`` in the file's own type, and its 4x4 affine in mm (RAS), None for pictures.

    Raises:
        InputError: the file is missing, truncated, or not an image of its type, or its affine is none.
    """
    reader = reader_for(path)
    _require(path)
    try:
        if isinstance(reader, NibabelReader):
            check_length(Path(path))
        array, meta = _through(reader, reader.read(str(path)))
    except Exception as error:  # readers raise whatever their format library raises
        raise InputError(f"{path}: cannot be read as an image ({_cause(error)}); wanted a complete file.") from error
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: found values of type {array.dtype}; wanted one real number per voxel.")
    return array, _affine(path, meta)


def read_header(path: str | Path) -> ImageHeader:
    """Read the header of an image, without its voxels where the format allows.

    Args:
        path: file, or folder holding one DICOM series.

    Returns:
        Shape, number of channels and affine.

    Raises:
        InputError: the file is missing, or its header is not that of an image whose axes have a size and a direction.
    """
    reader = reader_for(path)
    _require(path)
    try:
        if isinstance(reader, NibabelReader):
            return _nifti_header(path)
        if isinstance(reader, PILReader):
            return _picture_header(path)
        if isinstance(reader, NrrdReader):
            header = nrrd.read_header(str(path))
            # The reader derives shape and affine from a header and an array; one without memory is enough.
            voxels = np.broadcast_to(np.zeros((), np.uint8), tuple(header["sizes"]))
            array, meta = _through(reader, NrrdImage(voxels, dict(header)))
        else:
            # A DICOM series has no single header: its geometry is known once the slices are sorted.
            array, meta = _through(reader, reader.read(str(path)))
            if Path(path).is_dir():
                check_series(Path(path), tuple(array.shape[1:]), _affine(path, meta))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot read its header ({_cause(error)}); wanted an image file.") from error
    return ImageHeader(tuple(array.shape[1:]), int(array.shape[0]), _affine(path, meta))


def _require(path: str | Path) -> None:
    if not Path(path).exists():
        raise InputError(f"{path}: no such file or folder; wanted an image.")
    if not (Path(path).is_file() or Path(path).is_dir()):  # a pipe would be waited for without end
        raise InputError(f"{path}: found no regular file or folder; wanted an image.")


def _through(reader: ImageReader, opened: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Array ``(C, *spatial)`` and metadata of an opened image; readers warn about optional metadata only."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        array, meta = reader.get_data(opened)
        native = torch.as_tensor(array.astype(array.dtype.newbyteorder("=")))
        return np.asarray(EnsureChannelFirst()(native, meta)), meta


def _affine(path: str | Path, meta: dict[str, Any]) -> np.ndarray | None:
    affine = meta.get("affine")
    if affine is None:
        return None
    space = meta.get("space", "RAS")
    if space not in _SPACES:
        raise InputError(f"{path}: found space {str(space)!r}; wanted left-posterior-superior.")
    return _usable(path, np.asarray(affine, dtype=np.float64))


def _usable(path: str | Path, affine: np.ndarray) -> np.ndarray:
    wrong = unusable_affine(affine)
    if wrong is not None:
        raise InputError(f"{path}: found {wrong}.")
    return affine


def _nifti_header(path: str | Path) -> ImageHeader:
    check_length(Path(path))
    image: Any = nib.load(str(path))
    shape = tuple(int(n) for n in image.shape)
    if len(shape) > 4:
        raise InputError(f"{path}: found {len(shape)} axes, shape {shape}; wanted 3, or 4 with the channels last.")
    spatial, channels = shape[:3], shape[3:]
    affine = np.asarray(image.affine, dtype=np.float64)
    return ImageHeader(spatial, channels[0] if channels else 1, _usable(path, affine))


def _picture_header(path: str | Path) -> ImageHeader:
    with Image.open(path) as picture:
        width, height = picture.size
        pages = int(getattr(picture, "n_frames", 1))  # of which readers would take the first
        if pages != 1:
            raise InputError(f"{path}: found a stack of {pages} pictures; wanted one picture a file.")
        return ImageHeader((width, height), len(picture.getbands()), None)


def _cause(error: BaseException) -> str:
    """The innermost message of a chained error, which is the one that says what is wrong with the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
