# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing prepared files whole or not at all: NIfTI for volumes, PNG for pictures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import PIL.Image

from dacal_med.io.errors import InputError
from dacal_med.io.files import replacing
from dacal_med.io.image import Header, Image, check_place, on_grid_of
from dacal_med.io.pictures import is_plain
from dacal_med.io.reading import is_picture, read_header
from dacal_med.preparation.cases import Case, Picture, Pixels, Plan, Volume
from dacal_med.preparation.reading import read_picture


@dataclass(frozen=True)
class Written:
    """What became of a case.

    Attributes:
        image: path of the image, relative to the data set, with "/".
        label: path of the label file; None without one.
        voxels: voxels per class name; empty without a label.
        shape: size of the image along each axis.
        reference: path of the reference picture; None without one.
    """

    image: str
    label: str | None
    voxels: dict[str, int]
    shape: tuple[int, ...]
    reference: str | None = None

    def files(self) -> list[str]:
        """Paths of all files of the case."""
        return [name for name in (self.image, self.label, self.reference) if name is not None]


def write_case(case: Case, plan: Plan, out: Path) -> Written:
    """Convert one case.

    Args:
        case: what to write.
        plan: with the label tables.
        out: folder of the data set.

    Raises:
        InputError: an input is unreadable or cut off, a picture is grey where colours are wanted, a label value is not
            in the table, the label does not lie on its image, or the disk is full.
    """
    coloured = plan.modality.get(case.domain) == "RGB"
    image_path, header = _write_image(case, out, coloured=coloured)
    name = image_path.relative_to(out).as_posix()
    reference = _write_reference(case, out, coloured=coloured)
    if case.label is None:
        return Written(name, None, {}, header.shape, reference)
    pixels = case.label()
    table = plan.tables[case.domain]
    where = case.inputs[-1]
    label = table.remap(pixels.array, where)
    found = _header(label, pixels)
    check_place(header, str(case.inputs[0]), found, str(where))
    # Rounding apart, the affine of the image is that of the label: written the same, it stays the same.
    same: Pixels = Picture(label)
    if header.affine is not None:
        same = Volume(on_grid_of(header, Image(label[None], found))[0], header.affine)
    label_path = _write(same, out / case.domain / "labels" / case.name)
    return Written(name, label_path.relative_to(out).as_posix(), table.count(label), header.shape, reference)


def _write_image(case: Case, out: Path, *, coloured: bool) -> tuple[Path, Header]:
    stem = out / case.domain / "images" / case.name
    if isinstance(case.image, Path):
        header = read_header(case.image)
        if is_picture(case.image):
            # A header gives width and height, labels have rows and columns.
            header = replace(header, shape=header.shape[::-1])
            picture = _whole_picture(case.image, coloured=coloured)
            if not is_plain(case.image, str(case.image)):
                return _write(picture, stem), header
        return _copy(case.image, stem), header
    pixels = case.image()
    return _write(pixels, stem), _header(pixels.array, pixels)


def _whole_picture(path: Path, *, coloured: bool) -> Picture:
    """Read a picture to its end, since a copy would be cut off like the original."""
    picture = read_picture(path)
    if coloured and picture.array.ndim != 3:
        raise InputError(f"{path}: found a grey picture; wanted colours, as in the owner's images.")
    return picture


def _write_reference(case: Case, out: Path, *, coloured: bool) -> str | None:
    if case.reference is None:
        return None
    _whole_picture(case.reference, coloured=coloured)
    path = _copy(case.reference, out / case.domain / "references" / case.name)
    return path.relative_to(out).as_posix()


def _copy(file: Path, stem: Path) -> Path:
    """Copy a file to a name with the same suffix."""
    lower = file.name.lower()
    suffix = ".nii.gz" if lower.endswith(".nii.gz") else Path(lower).suffix
    path = stem.with_name(stem.name + suffix)
    with replacing(path, suffix) as temporary:
        shutil.copyfile(file, temporary)
    return path


def _header(array: np.ndarray[Any, Any], pixels: Pixels) -> Header:
    if isinstance(pixels, Volume):
        return Header(tuple(array.shape), 1, pixels.affine, "nifti")
    return Header(tuple(array.shape[:2]), 1, None, "picture")


def _write(pixels: Pixels, stem: Path) -> Path:
    if isinstance(pixels, Volume):
        path = stem.with_name(stem.name + ".nii.gz")
        array = pixels.array
        # NIfTI has no bits and halves, and its readers differ on 64 bits.
        if array.dtype in (np.float64, np.float16):
            array = array.astype(np.float32)
        elif array.dtype == np.bool_:
            array = array.astype(np.uint8)
        elif array.dtype in (np.int64, np.uint64):
            limits = np.iinfo(np.int32)
            if array.min() < limits.min or array.max() > limits.max:
                raise InputError(f"{path}: found values from {array.min()} to {array.max()}; wanted 32 bits.")
            array = array.astype(np.int32)
        with replacing(path, ".nii.gz") as temporary:
            nib.save(nib.Nifti1Image(array, pixels.affine), temporary)
        return path
    path = stem.with_name(stem.name + ".png")
    array = pixels.array
    if array.dtype.kind in "iu" and array.dtype != np.uint8 and array.ndim == 2:
        if array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
            raise InputError(f"{path}: found pixels from {array.min()} to {array.max()}; wanted 8 or 16 bits.")
        array = array.astype(np.uint16)
    elif array.dtype != np.uint8:
        raise InputError(f"{path}: found {array.dtype} pixels; wanted 8 bits, or 16 where they are gray.")
    with replacing(path, ".png") as temporary:
        PIL.Image.fromarray(array).save(temporary)
    return path
