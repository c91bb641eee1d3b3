# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""NIfTI: which of its forms decides, in which unit, and writing results with the same forms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.io.image import Affine, Array, Header, Opened, announced_bytes, real_numbers, told, usable_affine

SUFFIXES = (".nii", ".nii.gz")
_DEFLATE = 1032  # bytes that a compressed byte can become at most
_MILLIMETERS = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}
_UNITS = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
_TOLERANCE = 0.1  # of a voxel, between two statements of one geometry
# Fields of a header that say where its voxels lie, and nothing that could name a patient, with their sizes.
_OWN = {"pixdim": 8, "qform_code": 1, "sform_code": 1}
_OWN |= dict.fromkeys([f"quatern_{axis}" for axis in "bcd"] + [f"qoffset_{axis}" for axis in "xyz"], 1)
_OWN |= dict.fromkeys([f"srow_{axis}" for axis in "xyz"], 4)


@dataclass(frozen=True)
class Forms:
    """The geometry as a NIfTI file states it.

    Attributes:
        numbers: the fields of ``_OWN`` one after another, then the code of the unit: MONAI's metadata want arrays.
    """

    numbers: Array

    @classmethod
    def of(cls, header: Any) -> Forms:
        """Return the forms of a nibabel header."""
        return cls(np.hstack([*(np.ravel(header[name]) for name in _OWN), header["xyzt_units"] & 7]).astype(np.float64))

    def apply(self, header: Any) -> None:
        """Write the forms into a nibabel header, which has its shape."""
        start = 0
        for name, size in _OWN.items():
            header[name] = self.numbers[start : start + size].squeeze()
            start += size
        header["pixdim"][4:] = 1.0  # of axes that results do not have
        header["xyzt_units"] = int(self.numbers[start])


def open_nifti(path: Path, name: str) -> Opened:
    """Open a NIfTI file: 2 or 3 axes, or 4 or 5 with the channels last.

    The sform decides where it has a code, as in nibabel, else the qform; with neither, the voxel sizes and an axis
    order that is a guess. Lengths are converted to millimeters.

    Args:
        path: the file.
        name: what messages call it.

    Raises:
        InputError: it is no NIfTI file, cut off, or without a usable geometry.
    """
    try:
        image: Any = nib.load(str(path))
        _check_length(path, image)
        shape = tuple(int(n) for n in image.shape)
        header = image.header
        code = int(header["xyzt_units"]) & 7
        sform = header.get_sform(coded=True)
        qform = _qform(header, needed=not sform[1])
        base = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:  # nibabel raises whatever a damaged header leads it to
        raise InputError(f"{name}: cannot be read as NIfTI ({told(error)}); wanted a complete file") from error
    if len(shape) == 5 and shape[3] == 1:  # channels of a vector come after the time
        shape = (*shape[:3], shape[4])
    if not 2 <= len(shape) <= 4 or min(shape) < 1:
        raise InputError(f"{name}: found shape {shape}; wanted 2 or 3 axes, or 4 with the channels last")
    if code not in _UNITS:
        raise InputError(f"{name}: found the unit {code} of lengths; wanted {_UNITS}")
    unit = _UNITS[code]
    affine = np.diag([_MILLIMETERS[unit]] * 3 + [1.0]) @ base
    notes = _notes(header, unit, sform, qform, shape[:3])
    spatial, channels = shape[:3], shape[3] if len(shape) == 4 else 1

    def voxels() -> Array:
        try:
            array = np.asarray(image.dataobj).reshape(*spatial, channels, order="A")
        except Exception as error:  # nibabel and gzip raise whatever a cut-off file leads them to
            raise InputError(f"{name}: cannot be read as NIfTI ({told(error)}); wanted a complete file") from error
        return real_numbers(np.moveaxis(array, -1, 0), name)

    affine = usable_affine(affine, name)
    return Opened(Header(spatial, channels, affine, "nifti", notes=notes, forms=Forms.of(header)), voxels)


def _qform(header: Any, needed: bool) -> tuple[Affine | None, int]:
    """The qform and its code; without affine where it is no rotation and another form decides."""
    try:
        affine, code = header.get_qform(coded=True)
        return affine, int(code)
    except ValueError:
        if needed:
            raise
        return None, int(header["qform_code"])


def _notes(
    header: Any, unit: str, sform: tuple[Any, int], qform: tuple[Any, int], shape: tuple[int, ...]
) -> tuple[str, ...]:
    notes = []
    (s_affine, s_code), (q_affine, q_code) = sform, qform
    zooms = np.asarray(header.get_zooms()[: len(shape)], dtype=np.float64)
    if not s_code and not q_code:
        notes.append(
            "it has neither sform nor qform: left and right are a guess (first axis to the left, second to the front, "
            "third up)"
        )
    if s_code and s_affine is not None:
        sizes = np.linalg.norm(s_affine[:3, : len(shape)], axis=0)
        if np.abs(sizes - zooms).max() > _TOLERANCE * zooms.min():
            notes.append(f"its pixdim says {_listed(zooms)} and its sform {_listed(sizes)} {unit}: the sform decides")
        if q_code and q_affine is None:
            notes.append("its qform is no rotation: the sform decides")
        elif q_code and q_affine is not None:
            apart = _apart(s_affine, q_affine, shape)
            if apart > _TOLERANCE * zooms.min():
                notes.append(f"its sform and qform lie up to {apart:.3g} {unit} apart: the sform decides")
    if unit in ("meter", "micron"):
        notes.append(f"its lengths are in {unit}s: converted to mm inside, and back in results")
    return tuple(notes)


def _apart(one: Affine, other: Affine, shape: tuple[int, ...]) -> float:
    """How far apart two affines put the corners of a grid."""
    corners = np.stack(np.meshgrid(*[[0, n - 1] for n in shape], indexing="ij")).reshape(len(shape), -1)
    full = np.vstack([corners, np.zeros((3 - len(shape), corners.shape[1])), np.ones((1, corners.shape[1]))])
    return float(np.linalg.norm(((one - other) @ full)[:3], axis=0).max())


def _listed(sizes: Array) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)


def _check_length(path: Path, image: Any) -> None:
    """Refuse a file that cannot hold what its header announces, before memory for it is asked for."""
    if not hasattr(image.dataobj, "offset"):
        return
    shape = tuple(int(n) for n in image.shape)
    wanted = int(image.dataobj.offset) + announced_bytes(shape, image.dataobj.dtype.itemsize)
    found = path.stat().st_size
    if wanted > found * (_DEFLATE if path.name.lower().endswith(".gz") else 1):
        raise ValueError(f"its header announces {wanted} bytes; the file has {found}")


def result_header(shape: tuple[int, ...], dtype: type, affine: Affine, forms: Forms | None) -> Any:
    """Return the nibabel header of a result on an image's grid.

    Args:
        shape: of the image.
        dtype: of the result's values.
        affine: of the image, RAS, mm.
        forms: of the image, if it came as NIfTI: they are repeated as they are. Otherwise the affine becomes both
            forms; a shear goes into the sform alone, which can hold it.
    """
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    if forms is not None:
        forms.apply(header)
        return header
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    header.set_qform(affine, code=1 if np.allclose(axes.T @ axes, np.eye(3), atol=1e-3) else 0)
    return header
