# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The owners' files as the recipes want them: volumes and frames, series of slices, pictures and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dacal_med.io.dicom import open_series
from dacal_med.io.errors import InputError
from dacal_med.io.image import Image, Opened
from dacal_med.io.pictures import open_picture
from dacal_med.io.reading import read_image
from dacal_med.preparation.cases import Picture, Pixels, Volume


def as_pixels(image: Image, path: Path) -> Pixels:
    """Return an image of one channel, or a picture of one or three.

    Raises:
        InputError: it has other channels.
    """
    array, affine = image.array, image.header.affine
    if affine is None:
        return Picture(array[0].T if len(array) == 1 else array.transpose(2, 1, 0))
    if len(array) != 1 or array.ndim != 4:
        raise InputError(f"{path}: found shape {(*array.shape[1:], array.shape[0])}; wanted a 3D volume of one channel")
    return Volume(array[0], affine)


def read_volume(path: Path, frame: int | None = None) -> Volume:
    """Read a volume.

    Args:
        path: of an image with axes in space.
        frame: which volume of a 4D file, from 0; None for a 3D file.

    Returns:
        The volume in the file's own type and axes, with its affine.

    Raises:
        InputError: unreadable, not 3D (4D where ``frame`` is given), or too few frames.
    """
    image = read_image(path)
    array, affine = image.array, image.header.affine
    if array.ndim != 4 or affine is None or (frame is None and len(array) != 1):
        wanted = "a 3D volume" if frame is None else "a 4D volume, frames last"
        raise InputError(f"{path}: found shape {(*array.shape[1:], len(array))}; wanted {wanted}.")
    if frame is not None and not 0 <= frame < len(array):
        raise InputError(f"{path}: found {len(array)} frame(s); wanted frame {frame}, counted from 0.")
    return Volume(array[frame or 0], affine)


def open_slices(files: Sequence[Path]) -> Opened:
    """Open the files of a DICOM series, in the order of their positions in the patient.

    Raises:
        InputError: see :func:`dacal_med.io.dicom.open_series`.
    """
    folder = files[0].parent if files else "DICOM series"
    return open_series(files, str(folder), lambda index: str(files[index]))


def order_slices(files: Sequence[Path]) -> list[Path]:
    """Sort the files of a DICOM series by the position of their slices along the series.

    Raises:
        InputError: see :func:`open_slices`.
    """
    series = open_slices(files).header.series
    assert series is not None
    return series.ordered_files


def read_dicom(files: Sequence[Path]) -> Volume:
    """Read a DICOM series with rescaled values.

    Raises:
        InputError: see :func:`open_slices`.
    """
    opened = open_slices(files)
    assert opened.header.affine is not None
    return Volume(opened.voxels()[0], opened.header.affine)


def read_picture(path: Path, page: int | None = None) -> Picture:
    """Read a picture.

    Args:
        path: the file.
        page: which page of a stack, from 0.

    Returns:
        ``(rows, columns)`` gray values in the file's own type, or ``(rows, columns, 3)`` colors.

    Raises:
        InputError: see :func:`dacal_med.io.pictures.open_picture`.
    """
    array = open_picture(path, str(path), page=page).voxels()
    return Picture(array[0].T if len(array) == 1 else array.transpose(2, 1, 0))


def read_mask(path: Path, page: int | None = None) -> Picture:
    """Read a mask by the gray values that a viewer shows, one per pixel; colors must be gray.

    Raises:
        InputError: unreadable, or with colors.
    """
    array = read_picture(path, page).array
    if array.ndim == 3:
        if (array != array[..., :1]).any():
            raise InputError(f"{path}: found colors; wanted one label value per pixel.")
        array = array[..., 0]
    return Picture(array)
