# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""NRRD and MetaImage (MHA, MHD): their spaces, units and channels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nrrd
import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.io.image import Affine, Array, Header, Opened, real_numbers, told, usable_affine

SUFFIXES = (".nrrd", ".nhdr")
META_SUFFIXES = (".mha", ".mhd")
VOXEL_SUFFIXES = (".raw", ".zraw", ".raw.gz")  # beside .nhdr and .mhd
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_DIRECTIONS = {"left": (0, -1.0), "right": (0, 1.0), "posterior": (1, -1.0), "anterior": (1, 1.0)}
_DIRECTIONS |= {"superior": (2, 1.0), "inferior": (2, -1.0)}
_SHORT = {"L": "left", "R": "right", "P": "posterior", "A": "anterior", "S": "superior", "I": "inferior"}
_MILLIMETERS = {"": 1.0, "mm": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3}
_CHANNELS = ("list", "vector", "covariant-vector", "normal", "rgb-color", "rgba-color", "3-color", "4-color")
_SPATIAL = ("domain", "space", "none", "???", "")


def open_nrrd(path: Path, name: str) -> Opened:
    """Open an NRRD file of 2 or 3 spatial axes and at most one of channels.

    Args:
        path: the file; voxels may lie beside it.
        name: what messages call it.

    Raises:
        InputError: it is no NRRD file, or of a space, unit or kind of axis that is not known.
    """
    try:
        header: dict[str, Any] = dict(nrrd.read_header(str(path)))
        sizes = [int(n) for n in header["sizes"]]
    except Exception as error:  # pynrrd raises whatever a damaged header leads it to
        raise InputError(f"{name}: cannot be read as NRRD ({told(error)}); wanted a complete file") from error
    channel_axis = _channel_axis(header, len(sizes), name)
    spatial = [axis for axis in range(len(sizes)) if axis != channel_axis]
    shape = tuple(sizes[axis] for axis in spatial)
    if len(shape) not in (2, 3) or min(sizes) < 1:
        raise InputError(f"{name}: found sizes {sizes}; wanted 2 or 3 spatial axes")
    affine, notes = _affine(header, spatial, name)
    channels = 1 if channel_axis is None else sizes[channel_axis]

    def voxels() -> Array:
        try:
            array, _ = nrrd.read(str(path))
            array = np.asarray(array).reshape(sizes, order="A")
        except Exception as error:
            raise InputError(f"{name}: cannot be read as NRRD ({told(error)}); wanted a complete file") from error
        return real_numbers(array[None] if channel_axis is None else np.moveaxis(array, channel_axis, 0), name)

    return Opened(Header(shape, channels, usable_affine(affine, name), "nrrd", notes=notes), voxels)


def _channel_axis(header: dict[str, Any], dims: int, name: str) -> int | None:
    kinds = [str(kind).lower() for kind in header.get("kinds", [])] or [""] * dims
    strange = [kind for kind in kinds if kind not in (*_CHANNELS, *_SPATIAL)]
    if strange:
        raise InputError(f"{name}: found an axis of the kind {strange[0]!r}; wanted axes in space or of channels")
    found = [axis for axis, kind in enumerate(kinds) if kind in _CHANNELS]
    if "space directions" in header:
        rows = np.asarray(header["space directions"], dtype=np.float64)
        if rows.ndim != 2 or len(rows) != dims:
            raise InputError(f"{name}: found {len(rows)} space directions; wanted one for each of {dims} axes")
        found = [axis for axis in range(dims) if np.isnan(rows[axis]).all()] or found
    if len(found) > 1:
        raise InputError(f"{name}: found {len(found)} axes that are not in space; wanted at most one, of channels")
    return found[0] if found else None


def _affine(header: dict[str, Any], spatial: list[int], name: str) -> tuple[Affine, tuple[str, ...]]:
    affine = np.eye(4)
    dims = len(spatial)
    if "space directions" not in header:
        spacings = np.asarray(header.get("spacings", np.ones(len(header["sizes"]))), dtype=np.float64)[spatial]
        affine[:dims, :dims] = np.diag(np.where(np.isfinite(spacings), spacings, 1.0))
        note = "it has no space directions: left and right are a guess (first axis to the left, second to the back)"
        return LPS_TO_RAS @ affine, (note,)
    rows = np.asarray(header["space directions"], dtype=np.float64)[spatial]
    origin = np.asarray(header.get("space origin", np.zeros(rows.shape[1])), dtype=np.float64)
    units = {str(unit).strip().strip('"').lower() for unit in header.get("space units", [])} or {""}
    if not units <= set(_MILLIMETERS) or len(units) > 1:
        raise InputError(f"{name}: found space units {sorted(units)}; wanted one of {', '.join(_MILLIMETERS)[2:]}")
    scale = _MILLIMETERS[units.pop()]
    inner = rows.shape[1]
    affine[:inner, :dims], affine[:inner, 3] = rows.T * scale, origin * scale
    space = header.get("space")
    if space is None and inner == 2:
        return LPS_TO_RAS @ affine, ("it has no space: left and right are a guess (first axis to the left)",)
    return _space(str(space), name) @ affine, ()


def _space(space: str, name: str) -> Affine:
    """What turns coordinates of a space into RAS."""
    words = [_SHORT.get(word, word) for word in (space if len(space) == 3 else space.lower().split("-"))]
    turned = np.zeros((4, 4))
    turned[3, 3] = 1.0
    for column, word in enumerate(words[:3]):
        axis, sign = _DIRECTIONS.get(word, (3, 0.0))
        turned[axis, column] = sign
    if len(words) != 3 or abs(np.linalg.det(turned)) != 1.0:
        raise InputError(
            f"{name}: found space {space!r}; wanted directions of the patient, such as left-posterior-superior"
        )
    return turned


def open_meta_image(path: Path, name: str) -> Opened:
    """Open a MetaImage (MHA, MHD) of 2 or 3 axes, read by SimpleITK.

    Args:
        path: the file; voxels of an MHD lie beside it.
        name: what messages call it.

    Raises:
        InputError: SimpleITK is not installed, or the file cannot be read.
    """
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise InputError(f"{name}: MetaImage wants SimpleITK, which is not installed: pip install simpleitk") from error
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(
            f"{name}: cannot be read as MetaImage ({_last_line(error)}); wanted a complete file"
        ) from error
    shape = tuple(int(n) for n in reader.GetSize())
    dims, channels = len(shape), int(reader.GetNumberOfComponents())
    if dims not in (2, 3):
        raise InputError(f"{name}: found {dims} axes; wanted 2 or 3")
    affine = np.eye(4)
    affine[:dims, :dims] = np.asarray(reader.GetDirection()).reshape(dims, dims) * np.asarray(reader.GetSpacing())
    affine[:dims, 3] = reader.GetOrigin()

    def voxels() -> Array:
        try:
            array = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise InputError(
                f"{name}: cannot be read as MetaImage ({_last_line(error)}); wanted a complete file"
            ) from error
        # Components come last, axes in reverse.
        array = array if channels > 1 else array[..., None]
        return real_numbers(array.transpose(dims, *reversed(range(dims))), name)

    return Opened(Header(shape, channels, usable_affine(LPS_TO_RAS @ affine, name), "mha"), voxels)


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1]
