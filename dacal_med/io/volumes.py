# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""An image as the site gave it, with its geometry: reading NIfTI, NRRD and pictures, and what is refused."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data.image_reader import ImageReader, NibabelReader, NrrdReader, PILReader
from monai.transforms import EnsureChannelFirst

from dacal_med.io.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
NRRD_SUFFIXES = (".nrrd",)
_SHEAR_TOLERANCE = 1e-3  # cosine of the angle between two axes
# The reader turns left-posterior-superior into RAS itself.
_RAS = ("RAS", "right-anterior-superior")
_CHUNK_VOXELS = 1 << 22
SMALLEST_MM, LARGEST_MM = 1e-6, 1e4  # from a nanometre to ten metres: nothing else is a voxel
_DEFLATE = 1032  # bytes that a compressed byte can become at most


@dataclass
class Volume:
    """An image in its own geometry.

    Attributes:
        array: ``(channels, *spatial)``, in the type of the file.
        affine: voxel index to patient millimetres, RAS, ``(4, 4)``; None for pictures, which have no scale.
        format: "dicom", "nifti", "nrrd" or "picture".
        modality: as DICOM names it ("CT", "MR"); None where the format does not say.
        warnings: what the user should know and need not stop for.
        series: what is needed to write a DICOM segmentation of it; None for other formats.
    """

    array: np.ndarray
    affine: np.ndarray | None
    format: str
    modality: str | None = None
    warnings: list[str] = field(default_factory=list)
    series: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each spatial axis, in the order of the file."""
        return tuple(int(n) for n in self.array.shape[1:])

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbours along each spatial axis, in mm; ones for pictures."""
        dims = len(self.shape)
        if self.affine is None:
            return (1.0,) * dims
        return tuple(float(size) for size in np.linalg.norm(self.affine[:3, :dims], axis=0))

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel; 1 for pictures."""
        if self.affine is None:
            return 1.0
        return abs(float(np.linalg.det(self.affine[:3, :3])))


def is_image_file(path: Path) -> bool:
    """Whether the name is that of a NIfTI, NRRD or picture file."""
    return path.name.lower().endswith((*NIFTI_SUFFIXES, *NRRD_SUFFIXES, *PICTURE_SUFFIXES))


def read_file(path: Path, name: str) -> Volume:
    """Read a NIfTI or NRRD file or a picture as the bundle's own reader does.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        InputError: it is truncated or not an image of its type.
    """
    reader, kind = _reader(path)
    try:
        if kind == "nifti":
            check_length(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about optional metadata only
            opened = reader.read(str(path))
            pages = int(getattr(opened, "n_frames", 1))  # of which the reader would take the first
            array, meta = reader.get_data(opened)
            native = torch.as_tensor(array.astype(array.dtype.newbyteorder("="), copy=False))
            image = np.asarray(EnsureChannelFirst()(native, meta))
    except Exception as error:  # readers raise whatever their format library raises
        raise InputError(f"{name}: cannot be read as {kind} ({_cause(error)}); wanted a complete file") from error
    if pages != 1:
        raise InputError(f"{name}: found a stack of {pages} pictures; wanted one picture a file")
    affine = meta.get("affine")
    if affine is None:
        return Volume(image, None, kind)
    space = str(meta.get("space", "RAS"))
    if space not in _RAS:
        raise InputError(f"{name}: found space {space!r}; wanted left-posterior-superior or right-anterior-superior")
    full = np.eye(4)
    inner = len(affine) - 1
    full[:inner, :inner], full[:inner, 3] = affine[:inner, :inner], affine[:inner, inner]
    return Volume(image, full, kind)


def check_length(path: Path) -> None:
    """Refuse a NIfTI file that cannot hold what its header announces, before memory for it is asked for.

    Args:
        path: the file.

    Raises:
        ValueError: it is too short.
    """
    image: Any = nib.load(str(path))
    if not hasattr(image.dataobj, "offset"):
        return
    wanted = int(image.dataobj.offset) + math.prod(int(n) for n in image.shape) * image.dataobj.dtype.itemsize
    found = path.stat().st_size
    if wanted > found * (_DEFLATE if path.name.lower().endswith(".gz") else 1):
        raise ValueError(f"its header announces {wanted} bytes; the file has {found}")


def _reader(path: Path) -> tuple[ImageReader, str]:
    lower = path.name.lower()
    if lower.endswith(NIFTI_SUFFIXES):
        return NibabelReader(), "nifti"
    if lower.endswith(NRRD_SUFFIXES):
        return NrrdReader(), "nrrd"
    return PILReader(), "picture"


def check(volume: Volume, name: str, spatial_dims: int, channels: int, modality: str | None, force: bool) -> None:
    """Refuse what the model cannot be run on, and note in ``volume.warnings`` what it can but should not.

    Args:
        volume: the image.
        name: what messages call it.
        spatial_dims: axes of the model's images.
        channels: channels of the model's images.
        modality: what the model was made for, as its metadata says.
        force: run on another modality all the same.

    Raises:
        InputError: other axes or channels, no voxel, a constant image, values that are not finite, an affine without
            volume, or another modality.
    """
    if volume.array.size == 0:
        raise InputError(f"{name}: found size {volume.shape}; wanted an image with voxels")
    if len(volume.shape) != spatial_dims:
        raise InputError(f"{name}: found {len(volume.shape)} spatial axes; this model wants {spatial_dims}")
    if volume.array.shape[0] != channels:
        raise InputError(f"{name}: found {volume.array.shape[0]} channel(s); this model wants {channels}")
    _check_values(volume.array, name)
    if volume.affine is not None:
        _check_affine(volume, name)
    _check_modality(volume, name, modality, force)


def _check_values(array: np.ndarray, name: str) -> None:
    """Refuse values that are not finite and images without contrast, a chunk at a time."""
    bad, low, high = 0, np.inf, -np.inf
    for chunk in _chunks(array):
        finite = finite_in_single(chunk)
        bad += chunk.size - int(finite.sum())
        if finite.any():
            low, high = min(low, float(chunk[finite].min())), max(high, float(chunk[finite].max()))
    if bad:
        raise InputError(
            f"{name}: found {bad} voxel(s) that are NaN or infinite in single precision; wanted finite values"
        )
    if low == high:
        raise InputError(f"{name}: found the one value {low:g} in every voxel; wanted an image")


def finite_in_single(array: np.ndarray) -> np.ndarray:
    """Where values are numbers in the precision that networks compute in, which ends at 3.4e38."""
    if array.dtype.kind in "biu":
        return np.ones(array.shape, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(array.astype(np.float32, copy=False))


def _chunks(array: np.ndarray) -> list[np.ndarray]:
    axis = int(np.argmax(array.shape))
    count = max(1, -(-array.size // _CHUNK_VOXELS))
    return [part for part in np.array_split(array, min(count, array.shape[axis]), axis=axis) if part.size]


def unusable_affine(affine: np.ndarray) -> str | None:
    """What is wrong with an affine ``(4, 4)`` that gives no place to every voxel, and what was wanted; None if nothing.

    Args:
        affine: voxel index to millimetres.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sizes < SMALLEST_MM).any() or (sizes > LARGEST_MM).any():
        return (
            f"voxel sizes {sizes.tolist()} at {affine[:3, 3].tolist()}; wanted an affine of sizes from "
            f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm"
        )
    if abs(float(np.linalg.det(affine[:3, :3] / sizes))) < 1e-3:
        return "an affine whose axes lie in one plane; wanted three directions"
    return None


def _check_affine(volume: Volume, name: str) -> None:
    affine = volume.affine
    assert affine is not None
    wrong = unusable_affine(affine)
    if wrong is not None:
        raise InputError(f"{name}: found {wrong}")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
    if shear > _SHEAR_TOLERANCE and not volume.warnings:
        angle = float(np.degrees(np.arcsin(min(1.0, shear))))
        volume.warnings.append(f"axes are {angle:.1f} degrees from orthogonal: resampled to an orthogonal grid inside")


def _check_modality(volume: Volume, name: str, wanted: str | None, force: bool) -> None:
    if wanted is None or volume.modality is None or volume.modality == wanted:
        return
    found = f"found modality {volume.modality}; this model is made for {wanted}"
    if not force:
        raise InputError(f"{name}: {found}; --force true runs it all the same")
    volume.warnings.append(f"{found}: run because of --force")


def _cause(error: BaseException) -> str:
    """The innermost message of a chained error, which is the one that says what is wrong with the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:200]}"
