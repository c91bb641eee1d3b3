# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What every reader gives: a header, and voxels that are read when they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from dacal_med.io.errors import InputError

if TYPE_CHECKING:
    from dacal_med.io.dicom import Series
    from dacal_med.io.nifti import Forms

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]

SMALLEST_MM, LARGEST_MM = 1e-6, 1e4  # from a nanometer to ten meters: nothing else is a voxel
_CORNER_TOLERANCE = 0.1  # of a voxel: headers store single precision, rounded differently by every tool
_LONGEST = 200  # characters of a library's message


@dataclass(frozen=True)
class Header:
    """What a file says about its image before the voxels are read.

    Attributes:
        shape: size along each spatial axis, in the order of the file; width before height for pictures.
        channels: number of channels, 1 for a gray image or a volume.
        affine: voxel index to patient millimeters, RAS, ``(4, 4)``; None for pictures, which have no scale.
        format: "dicom", "nifti", "nrrd", "mha", "hdf5", "stack" or "picture".
        modality: as DICOM names it ("CT", "MR"); None where the format does not say.
        notes: what is unusual or was guessed, and what was done about it.
        series: what is needed to refer to a DICOM series; None for other formats.
        forms: the geometry as a NIfTI file states it; None for other formats.
    """

    shape: tuple[int, ...]
    channels: int
    affine: Affine | None
    format: str
    modality: str | None = None
    notes: tuple[str, ...] = ()
    series: Series | None = None
    forms: Forms | None = None

    @property
    def spacing(self) -> tuple[float, ...]:
        """Distance between neighbors along each spatial axis of the file, in mm; ones for pictures."""
        dims = len(self.shape)
        if self.affine is None:
            return (1.0,) * dims
        return tuple(float(size) for size in np.linalg.norm(self.affine[:3, :dims], axis=0))

    @property
    def patient_spacing(self) -> tuple[float, ...]:
        """Voxel size in mm along the patient axes (right, anterior, superior), whatever the order of the file's."""
        if self.affine is None or len(self.shape) < 3:
            return self.spacing
        ordered = np.ones(3)
        ordered[nib.orientations.io_orientation(self.affine)[:, 0].astype(int)] = self.spacing
        return tuple(float(size) for size in ordered)

    @property
    def voxel_volume_mm3(self) -> float:
        """Volume of a voxel; 1 for pictures."""
        return 1.0 if self.affine is None else abs(float(np.linalg.det(self.affine[:3, :3])))


@dataclass(frozen=True)
class Image:
    """An image in its own geometry.

    Attributes:
        array: ``(channels, *spatial)``, in the type of the file.
        header: its geometry and what else the file says.
    """

    array: Array
    header: Header


@dataclass(frozen=True)
class Opened:
    """An image whose header was read.

    Attributes:
        header: what the file says.
        voxels: reads ``(channels, *spatial)``; raises InputError.
    """

    header: Header
    voxels: Callable[[], Array]


def usable_affine(affine: npt.ArrayLike, name: str) -> Affine:
    """Return an affine ``(4, 4)`` in double precision if it gives a place to every voxel.

    Args:
        affine: voxel index to millimeters.
        name: what messages call the image.

    Raises:
        InputError: sizes that no voxel has, or axes that lie in one plane.
    """
    matrix = np.asarray(affine, dtype=np.float64)
    with np.errstate(all="ignore"):
        sizes = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or (sizes < SMALLEST_MM).any() or (sizes > LARGEST_MM).any():
        raise InputError(
            f"{name}: found voxel sizes {sizes.tolist()} at {matrix[:3, 3].tolist()}; wanted an affine of sizes from "
            f"{SMALLEST_MM:g} to {LARGEST_MM:g} mm"
        )
    if abs(float(np.linalg.det(matrix[:3, :3] / sizes))) < 1e-3:
        raise InputError(f"{name}: found an affine whose axes lie in one plane; wanted three directions")
    return matrix


def embedded(affine: npt.ArrayLike) -> Affine:
    """Return an affine of 1 to 3 axes as ``(4, 4)``."""
    own, full = np.asarray(affine, dtype=np.float64), np.eye(4)
    inner = len(own) - 1
    full[:inner, :inner], full[:inner, 3] = own[:inner, :inner], own[:inner, inner]
    return full


def real_numbers(array: Array, name: str) -> Array:
    """Return an array in the byte order of this machine.

    Raises:
        InputError: its values are not one real number each.
    """
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name}: found values of type {array.dtype}; wanted one real number per voxel")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def finite_in_single(array: Array) -> npt.NDArray[np.bool_]:
    """Where values are numbers in the precision that networks compute in, which ends at 3.4e38."""
    if array.dtype.kind in "biu":
        return np.ones(array.shape, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.isfinite(array.astype(np.float32, copy=False))


def check_place(image: Header, image_name: str, label: Header, label_name: str) -> None:
    """Check that a label lies on its image: the same voxels in the same places, whatever the order of the axes.

    Args:
        image: header of the image.
        image_name: what messages call it.
        label: header of the label.
        label_name: what messages call it.

    Raises:
        InputError: another size, or corners more than a tenth of a voxel apart once both are turned to the axes of the
            patient, as preprocessing turns them.
    """
    (shape, affine), (label_shape, label_affine) = _turned(image), _turned(label)
    if label_shape != shape:
        raise InputError(f"{label_name}: found shape {label.shape}; wanted {image.shape}, that of {image_name}.")
    if affine is None or label_affine is None:
        return
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in shape], indexing="ij")).reshape(len(shape), -1)
    full = np.vstack([corners, np.zeros((3 - len(shape), corners.shape[1])), np.ones((1, corners.shape[1]))])
    apart = float(np.linalg.norm(((affine - label_affine) @ full)[:3], axis=0).max())
    if not apart <= _CORNER_TOLERANCE * min(image.spacing):
        raise InputError(
            f"{label_name}: lies up to {apart:.3g} mm away from its image {image_name} (another origin, direction or "
            "spacing); wanted a label in the place of its image."
        )


def on_grid_of(image: Header, label: Image) -> Array:
    """Return the voxels of a label ``(channels, *spatial)`` in the order of the image's axes.

    Args:
        image: header of the image, on which the label lies (:func:`check_place`).
        label: with axes in any order and direction.
    """
    if image.affine is None or label.header.affine is None or len(image.shape) < 3:
        return label.array
    orientation = nib.orientations
    path = orientation.ornt_transform(
        orientation.io_orientation(label.header.affine), orientation.io_orientation(image.affine)
    )
    return np.stack([orientation.apply_orientation(channel, path) for channel in label.array])


def _turned(header: Header) -> tuple[tuple[int, ...], Affine | None]:
    """Size and affine after the axes were turned to those of the patient."""
    if header.affine is None or len(header.shape) < 3:
        return header.shape, header.affine
    orientation = nib.orientations.io_orientation(header.affine)
    shape = [0] * 3
    for axis, place in enumerate(orientation[:, 0].astype(int)):
        shape[place] = header.shape[axis]
    return tuple(shape), header.affine @ nib.orientations.inv_ornt_aff(orientation, header.shape)


def told(error: BaseException) -> str:
    """The innermost message of a chained error, which is the one that says what is wrong with a file."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:_LONGEST]}"


def announced_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Return how many bytes voxels of a shape take."""
    return math.prod(shape) * itemsize
