# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing prepared files whole or not at all: NIfTI for volumes, PNG for pictures."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from dacal_med.data.checking import check_geometry
from dacal_med.data.images import ImageHeader, is_picture, read_header
from dacal_med.io.errors import InputError
from dacal_med.io.files import replacing
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
        return Written(name, None, {}, header.spatial_shape, reference)
    pixels = case.label()
    table = plan.tables[case.domain]
    where = case.inputs[-1]
    label = table.remap(pixels.array, where)
    found = ImageHeader(_shape(label, pixels), 1, pixels.affine if isinstance(pixels, Volume) else None)
    check_geometry(str(case.inputs[0]), header, str(where), found)
    # Rounding apart, the affine of the image is that of the label: written the same, it stays the same.
    same = Volume(label, header.affine) if header.affine is not None else Picture(label)
    label_path = _write(same, out / case.domain / "labels" / case.name)
    return Written(name, label_path.relative_to(out).as_posix(), table.count(label), header.spatial_shape, reference)


def _write_image(case: Case, out: Path, *, coloured: bool) -> tuple[Path, ImageHeader]:
    stem = out / case.domain / "images" / case.name
    if isinstance(case.image, Path):
        header = read_header(case.image)
        if is_picture(case.image):
            # A header gives width and height, labels have rows and columns.
            header = ImageHeader(header.spatial_shape[::-1], header.channels, None)
            picture = _whole_picture(case.image, coloured=coloured)
            # With transparency, which no network takes, or with colours in a table, which are read as its indices.
            if header.channels not in (1, 3) or (coloured and header.channels == 1):
                return _write(picture, stem), header
        return _copy(case.image, stem), header
    pixels = case.image()
    path = _write(pixels, stem)
    affine = pixels.affine if isinstance(pixels, Volume) else None
    return path, ImageHeader(_shape(pixels.array, pixels), 1, affine)


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


def _shape(array: np.ndarray[Any, Any], pixels: Pixels) -> tuple[int, ...]:
    return tuple(array.shape) if isinstance(pixels, Volume) else tuple(array.shape[:2])


def _write(pixels: Pixels, stem: Path) -> Path:
    if isinstance(pixels, Volume):
        path = stem.with_name(stem.name + ".nii.gz")
        array = pixels.array
        # NIfTI readers differ on 64 bits; nothing here needs them.
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        elif array.dtype in (np.int64, np.uint64):
            array = array.astype(np.int32)
        with replacing(path, ".nii.gz") as temporary:
            nib.save(nib.Nifti1Image(array, pixels.affine), temporary)
        return path
    path = stem.with_name(stem.name + ".png")
    if pixels.array.dtype != np.uint8:
        raise InputError(f"{path}: found {pixels.array.dtype} pixels; wanted 8 bits.")
    with replacing(path, ".png") as temporary:
        Image.fromarray(pixels.array).save(temporary)
    return path
