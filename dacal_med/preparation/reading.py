# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading the owners' files: NIfTI volumes and frames, DICOM series, MHA, NRRD, HDF5, pictures and TIFF stacks."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from PIL import Image, UnidentifiedImageError

from dacal_med.data.images import read_image
from dacal_med.io.errors import InputError
from dacal_med.preparation.cases import Picture, Volume

_GAP_TOLERANCE = 0.02  # of the slice distance; positions are stored with few digits
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_volume(path: Path, frame: int | None = None) -> Volume:
    """Read a NIfTI volume.

    Args:
        path: NIfTI file.
        frame: which volume of a 4D file, from 0; None for a 3D file.

    Returns:
        The volume in the file's own type and axes, with its affine.

    Raises:
        InputError: unreadable, not 3D (4D where ``frame`` is given), or too few frames.
    """
    array, affine = read_image(path)
    shape = array.shape[1:]
    if len(shape) != 3 or affine is None or (frame is None and array.shape[0] != 1):
        wanted = "a 3D volume" if frame is None else "a 4D volume, frames last"
        raise InputError(f"{path}: found shape {(*shape, array.shape[0])}; wanted {wanted}.")
    if frame is not None and not 0 <= frame < array.shape[0]:
        raise InputError(f"{path}: found {array.shape[0]} frame(s); wanted frame {frame}, counted from 0.")
    return Volume(array[frame or 0], affine)


def read_dicom(files: Sequence[Path]) -> Volume:
    """Read a DICOM series, the slices in the order of their positions in the patient.

    Positions decide, neither file names nor series numbers: anonymisation changes both.

    Args:
        files: one 2D slice each.

    Returns:
        The volume with rescaled values; ``affine`` from positions, directions and spacings in the headers.

    Raises:
        InputError: SimpleITK is not installed, a file is unreadable, or the slices are not parallel, evenly spaced and
            of one size.
    """
    ordered = order_slices(files)
    sitk = _simpleitk(ordered[0].parent)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in ordered])
    try:
        return _from_simpleitk(reader.Execute())
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1]
        raise InputError(f"{ordered[0].parent}: cannot be read as a DICOM series ({cause}).") from error


def read_itk(path: Path, *, voxels: bool = True) -> Volume:
    """Read a volume of one of ITK's formats: MHA, MHD or NRRD.

    Args:
        path: the file.
        voxels: whether to read them; an array without memory of its own stands in for them otherwise.

    Raises:
        InputError: SimpleITK is not installed, the file is unreadable, or not a volume of one channel.
    """
    sitk = _simpleitk(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        size, channels = reader.GetSize(), reader.GetNumberOfComponents()
        if len(size) != 3 or channels != 1:
            raise InputError(
                f"{path}: found {len(size)} axes and {channels} channel(s); wanted a volume of one channel."
            )
        if not voxels:
            return Volume(np.broadcast_to(np.zeros((), np.uint8), size), np.eye(4))
        return _from_simpleitk(reader.Execute())
    except RuntimeError as error:
        cause = str(error).strip().splitlines()[-1]
        raise InputError(f"{path}: cannot be read as an image ({cause}); wanted a complete file.") from error


def _simpleitk(path: Path) -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            f"{path}: SimpleITK is not installed; wanted for DICOM series, MHA and NRRD: pip install "
            "'dacal-med[prepare]'."
        ) from error
    return SimpleITK


def _from_simpleitk(image: Any) -> Volume:
    import SimpleITK as sitk

    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()).reshape(3, 3) * np.asarray(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return Volume(sitk.GetArrayFromImage(image).transpose(2, 1, 0), _LPS_TO_RAS @ affine)


def order_slices(files: Sequence[Path]) -> list[Path]:
    """Sort the files of a DICOM series by the position of their slices along the series.

    Args:
        files: one 2D slice each, at least 2.

    Raises:
        InputError: an unreadable file, or slices that are not parallel, evenly spaced and of one size.
    """
    if len(files) < 2:
        raise InputError(f"{files[0] if files else 'DICOM series'}: found {len(files)} slice(s); wanted 2 or more.")
    places: list[tuple[float, Path]] = []
    first: Any = None
    for path in files:
        header = _dicom_header(path)
        if first is None:
            first = header
        same = np.allclose(header[0], first[0], atol=1e-4) and header[2:] == first[2:]
        if not same:
            raise InputError(f"{path}: has another direction or size than {files[0]}; wanted one series of slices.")
        normal = np.cross(first[0][:3], first[0][3:])
        places.append((float(normal @ header[1]), path))
    places.sort(key=lambda place: place[0])
    gaps = np.diff([place for place, _ in places])
    if not (gaps > 0).all() or np.ptp(gaps) > _GAP_TOLERANCE * float(np.median(gaps)):
        raise InputError(
            f"{files[0].parent}: found slice distances from {gaps.min():.4g} to {gaps.max():.4g} mm; "
            "wanted evenly spaced slices, none missing or twice."
        )
    return [path for _, path in places]


def _dicom_header(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], int, int]:
    """Directions of row and column, position, rows and columns of a slice."""
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True)
        directions = np.asarray(header.ImageOrientationPatient, dtype=np.float64)
        position = np.asarray(header.ImagePositionPatient, dtype=np.float64)
        rows, columns = int(header.Rows), int(header.Columns)
    except Exception as error:  # pydicom raises whatever a damaged header leads it to
        raise InputError(f"{path}: cannot be read as a DICOM slice ({type(error).__name__}: {error}).") from error
    if directions.shape != (6,) or position.shape != (3,) or not np.isfinite([*directions, *position]).all():
        raise InputError(
            f"{path}: found the position {position.tolist()} and directions {directions.tolist()}; wanted 3 and 6 "
            "numbers."
        )
    return directions, position, rows, columns


def count_pages(path: Path) -> int:
    """Count the pages of a TIFF stack.

    Raises:
        InputError: not a picture.
    """
    with _open(path) as picture:
        return int(getattr(picture, "n_frames", 1))


def read_picture(path: Path, page: int = 0) -> Picture:
    """Read a picture: PNG, JPEG, TIFF, GIF, BMP or PPM, also gzipped.

    Args:
        path: the file.
        page: which page of a stack, from 0.

    Returns:
        ``(rows, columns)`` grey or label values in the file's own type, or ``(rows, columns, 3)`` colour.

    Raises:
        InputError: unreadable, no such page, or neither grey nor colour.
    """
    with _open(path) as picture:
        try:
            picture.seek(page)
            # Palettes and bits hold their meaning in a table; everything else is read as it is.
            mode = {"P": "RGB" if _coloured(picture) else "L", "1": "L", "RGBA": "RGB", "LA": "L"}.get(picture.mode)
            array = np.asarray(picture.convert(mode) if mode else picture)
        except (EOFError, OSError, SyntaxError) as error:
            raise InputError(f"{path}: cannot read page {page} ({error}).") from error
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] != 3):
        raise InputError(f"{path}: found shape {array.shape}; wanted a grey or a colour picture.")
    return Picture(array)


def read_stack(path: Path) -> Volume:
    """Read the pages of a TIFF stack as a volume of 1 mm voxels, since TIFF holds no millimetres.

    Returns:
        ``(x, y, z)``: columns, rows, pages.

    Raises:
        InputError: unreadable, coloured, or pages of several sizes.
    """
    pages = [read_mask(path, page).array for page in range(count_pages(path))]
    shapes = sorted({page.shape for page in pages})
    if len(shapes) > 1:
        raise InputError(f"{path}: found pages of {shapes[0]} and {shapes[1]} pixels; wanted pages of one size.")
    return Volume(np.stack(pages).transpose(2, 1, 0), np.eye(4))


def read_mask(path: Path, page: int = 0) -> Picture:
    """Read label values from a picture, one per pixel; colour files must be grey.

    Raises:
        InputError: unreadable, or with colours.
    """
    array = read_picture(path, page).array
    if array.ndim == 3:
        if (array != array[..., :1]).any():
            raise InputError(f"{path}: found colours; wanted one label value per pixel.")
        array = array[..., 0]
    return Picture(array)


def _open(path: Path) -> Image.Image:
    try:
        if path.suffix.lower() == ".gz":
            return Image.open(io.BytesIO(gzip.decompress(path.read_bytes())))
        return Image.open(path)
    except (OSError, EOFError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); wanted a complete file.") from error


def _coloured(picture: Image.Image) -> bool:
    colours = np.asarray(picture.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    return bool((colours != colours[:, :1]).any())
