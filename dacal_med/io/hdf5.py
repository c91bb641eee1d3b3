# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Arrays in HDF5 files: which one, its shape, its voxels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.io.image import Array, Header, Opened, usable_affine

SUFFIXES = (".h5", ".hdf5", ".hdf")
_VOXEL_SIZE = "element_size_um"  # (z, y, x) in micrometers, as ilastik and Fiji's HDF5 plugin write it


def open_array(path: Path, name: str = "", option: str = "", page: int | None = None) -> Opened:
    """Open an array: a picture ``(y, x)``, a volume ``(z, y, x)``, or a section of a volume.

    Args:
        path: HDF5 file.
        name: of the array in the file; "" for the only one.
        option: of the command that names it, for messages.
        page: which ``z`` alone, from 0: a section.

    Returns:
        A picture ``(1, x, y)``, or a volume ``(1, x, y, z)`` with the voxel size of the attribute ``element_size_um``,
        1 mm without it.

    Raises:
        InputError: h5py is not installed, the file is unreadable, has no such array, or not one alone, or a voxel size
            that is none.
    """
    with _array(path, name, option) as array:
        flat = array.ndim == 2 or page is not None
        shape = tuple(int(n) for n in array.shape[::-1])
        affine = np.eye(4)
        notes: tuple[str, ...] = ("HDF5 without element_size_um has no millimeters: voxels of 1 mm",)
        if not flat and _VOXEL_SIZE in array.attrs:
            given = np.asarray(array.attrs[_VOXEL_SIZE])
            size = given.astype(np.float64) if given.dtype.kind in "iuf" else np.zeros(0)
            if size.shape != (3,) or not (np.isfinite(size) & (size > 0)).all():
                raise InputError(
                    f"{path}: found {_VOXEL_SIZE} = {given.tolist()!r}; wanted three sizes above 0, z first."
                )
            affine[:3, :3], notes = np.diag(size[::-1] / 1000.0), ()

    def voxels() -> Array:
        with _array(path, name, option) as array:
            return np.asarray(array[...] if page is None else array[page]).T[None]

    if flat:
        return Opened(Header(shape[:2], 1, None, "picture"), voxels)
    return Opened(Header(shape, 1, usable_affine(affine, str(path)), "hdf5", notes=notes), voxels)


@contextmanager
def _array(path: Path, name: str, option: str) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise InputError(
            f"{path}: h5py is not installed; wanted for HDF5: pip install 'dacal-med[prepare]'."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            names: list[str] = []
            file.visititems(lambda key, thing: names.append(key) if isinstance(thing, h5py.Dataset) else None)
            chosen = name or (names[0] if len(names) == 1 else "")
            if chosen not in names:
                raise InputError(
                    f"{path}: found the array(s) {', '.join(names) or 'none'}; wanted "
                    + (f"{name} ({option})." if name else f"one alone, or {option} to name it.")
                )
            array = file[chosen]
            if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or array.size == 0:
                raise InputError(
                    f"{path}: found {chosen} of shape {array.shape} and type {array.dtype}; wanted numbers with two "
                    "or three axes, none of them empty."
                )
            yield array
    except OSError as error:
        raise InputError(f"{path}: cannot be read as HDF5 ({error}); wanted a complete file.") from error
