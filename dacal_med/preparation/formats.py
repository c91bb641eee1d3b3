# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whatever images lie in a folder, of any format that is read here."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dacal_med.io import hdf5, reading
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.io.hdf5 import open_array
from dacal_med.io.image import Header, Image, Opened
from dacal_med.io.nrrd import VOXEL_SUFFIXES
from dacal_med.io.pictures import TIFF_SUFFIXES, count_pages, open_picture, open_stack
from dacal_med.io.reading import image_stem, open_image
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Pixels
from dacal_med.preparation.reading import as_pixels

WANTED = f"{reading.WANTED}, HDF5 (.h5, .hdf5)"
_BESIDE = (".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".pdf")  # what people keep beside images


@dataclass(frozen=True)
class ImageFile:
    """An image in a folder.

    Attributes:
        path: the file, or the folder of a DICOM series.
        key: its name without suffix.
        section: page of a stack, from 0; None for whole files.
        header: of the image.
        inputs: the files that it consists of.
        open: opens it.
    """

    path: Path
    key: str
    section: int | None
    header: Header
    inputs: tuple[Path, ...]
    open: Callable[[], Opened]

    @property
    def name(self) -> str:
        """The key, with the page."""
        return self.key if self.section is None else f"{self.key}_{self.section:04d}"

    def read(self) -> Pixels:
        """Read it.

        Raises:
            InputError: it cannot be read.
        """
        return as_pixels(Image(self.open().voxels(), self.header), self.path)


def find_images(folder: Path, *, array: str, option: str, sections: bool, labels: bool) -> list[ImageFile]:
    """Find the images of a folder; texts and tables beside them are passed over.

    Args:
        folder: with one file, or sub-folder of DICOM slices, for each image.
        array: name of the array in HDF5 files, "" for the only one.
        option: of the command that names it.
        sections: whether pages of TIFF stacks and HDF5 volumes are images of their own.
        labels: whether they are label maps, whose pictures give the numbers of their palette.

    Raises:
        InputError: no such folder, nothing in it, something that is no image, or an unreadable image.
    """
    folder = given_path(folder, home=True)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted one of images: {WANTED}.")
    found: list[ImageFile] = []
    for path in folders.entries(folder):
        if not path.name.lower().endswith((*VOXEL_SUFFIXES, *_BESIDE)):
            found += _images(path, array, option, sections=sections, labels=labels)
    if not found:
        raise InputError(f"{folder}: found {folders.listing(folder)}; wanted images: {WANTED}.")
    return found


def check_dimensions(images: Iterable[ImageFile]) -> int:
    """Return the number of spatial axes that all images have.

    Raises:
        InputError: some are pictures and some are volumes.
    """
    first: ImageFile | None = None
    for image in images:
        first = first or image
        if len(image.header.shape) != len(first.header.shape):
            raise InputError(
                f"{image.path}: found an image of {len(image.header.shape)} axes, while {first.path} has "
                f"{len(first.header.shape)}; wanted pictures alone or volumes alone."
            )
    assert first is not None
    return len(first.header.shape)


def _images(path: Path, array: str, option: str, *, sections: bool, labels: bool) -> list[ImageFile]:
    name = path.name.lower()
    numbers: list[int | None] = [None]
    whole: Callable[..., Opened] = partial(open_image, path, as_label=labels)
    if not path.is_dir() and name.endswith(hdf5.SUFFIXES):
        whole = partial(open_array, path, array, option)
        shape = whole().header.shape
        numbers = list(range(shape[2])) if sections and len(shape) == 3 else numbers
    elif not path.is_dir() and name.endswith(TIFF_SUFFIXES) and (pages := count_pages(path)) > 1:
        whole = partial(open_picture if sections else open_stack, path, str(path), as_label=labels)
        numbers = list(range(pages)) if sections else numbers
    key = path.name if path.is_dir() else path.stem if name.endswith(hdf5.SUFFIXES) else image_stem(path)
    found = []
    for number in numbers:
        opened = whole if number is None else partial(whole, page=number)
        header = opened().header
        if header.affine is not None and (len(header.shape) != 3 or header.channels != 1):
            shape = (*header.shape, header.channels)
            raise InputError(f"{path}: found shape {shape}; wanted a 3D volume of one channel.")
        found.append(ImageFile(path, key, number, header, _inputs(path, key, header), opened))
    return found


def _inputs(path: Path, key: str, header: Header) -> tuple[Path, ...]:
    """The files that an image consists of: voxels may lie beside their header."""
    if header.series is not None:
        return tuple(header.series.ordered_files)
    return (path, *(beside for end in VOXEL_SUFFIXES if (beside := path.with_name(key + end)).is_file()))
