# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whatever images lie in a folder, of any format that is read here, found by their suffixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dacal_med.data.images import read_header
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Pixels
from dacal_med.preparation.hdf5 import read_array, shape_of
from dacal_med.preparation.reading import (
    count_pages,
    order_slices,
    read_dicom,
    read_itk,
    read_mask,
    read_picture,
    read_stack,
    read_volume,
)

NIFTI = (".nii.gz", ".nii")
ITK = (".mha", ".mhd", ".seg.nrrd", ".nrrd", ".nhdr")
HDF5 = (".h5", ".hdf5", ".hdf")
TIFF = (".tif", ".tiff")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm")
WANTED = (
    "NIfTI (.nii, .nii.gz), MHA, MHD, NRRD, HDF5 (.h5, .hdf5), TIFF, PNG, JPEG, BMP, GIF, PPM, or a folder for each "
    "DICOM series"
)
_VOXELS = (".raw", ".zraw")  # of .mhd and .nhdr
_BESIDE = (".txt", ".md", ".json", ".csv", ".tsv", ".xml", ".pdf")  # what people keep beside images


@dataclass(frozen=True)
class ImageFile:
    """An image in a folder.

    Attributes:
        path: the file, or the folder of a DICOM series.
        key: its name without suffix.
        section: page of a stack, from 0; None for whole files.
        dims: 2 for pictures, 3 for volumes.
        inputs: the files that it consists of.
        read: reads it.
    """

    path: Path
    key: str
    section: int | None
    dims: int
    inputs: tuple[Path, ...]
    read: Callable[[], Pixels]

    @property
    def name(self) -> str:
        """The key, with the page."""
        return self.key if self.section is None else f"{self.key}_{self.section:04d}"


def find_images(folder: Path, *, array: str, option: str, sections: bool, labels: bool) -> list[ImageFile]:
    """Find the images of a folder; texts and tables beside them are passed over.

    Args:
        folder: with one file, or sub-folder of DICOM slices, for each image.
        array: name of the array in HDF5 files, "" for the only one.
        option: of the command that names it.
        sections: whether pages of TIFF stacks and HDF5 volumes are images of their own.
        labels: whether they are label maps, whose pictures must be grey.

    Raises:
        InputError: no such folder, nothing in it, something that is no image, or an unreadable image.
    """
    folder = given_path(folder, home=True)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted one of images: {WANTED}.")
    found: list[ImageFile] = []
    for path in folders.entries(folder):
        if path.name.lower().endswith((*_VOXELS, *_BESIDE)):
            continue
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
        if image.dims != first.dims:
            raise InputError(
                f"{image.path}: found an image of {image.dims} axes, while {first.path} has {first.dims}; wanted "
                "pictures alone or volumes alone."
            )
    assert first is not None
    return first.dims


def _images(path: Path, array: str, option: str, *, sections: bool, labels: bool) -> list[ImageFile]:
    name = path.name.lower()
    if path.is_dir():
        slices = tuple(order_slices([file for file in folders.entries(path) if file.is_file()]))
        return [ImageFile(path, path.name, None, 3, slices, partial(read_dicom, slices))]
    suffix = next((known for known in (*NIFTI, *ITK, *HDF5, *TIFF, *PICTURES) if name.endswith(known)), None)
    if suffix is None:
        raise InputError(f"{path}: found a file of an unknown kind; wanted {WANTED}.")
    key = path.name[: -len(suffix)]
    picture = read_mask if labels else read_picture
    whole = partial(ImageFile, path, key, None)
    if suffix in NIFTI:
        header = read_header(path)
        if len(header.spatial_shape) != 3 or header.channels != 1:
            shape = (*header.spatial_shape, header.channels)
            raise InputError(f"{path}: found shape {shape}; wanted a 3D volume of one channel.")
        return [whole(3, (path,), partial(read_volume, path))]
    if suffix in ITK:
        read_itk(path, voxels=False)
        voxels = [path.with_name(key + raw) for raw in _VOXELS]
        return [whole(3, (path, *filter(Path.is_file, voxels)), partial(read_itk, path))]
    if suffix in HDF5:
        shape = shape_of(path, array, option)
        read = partial(read_array, path, array, option)
        if len(shape) == 3 and sections:
            return [ImageFile(path, key, z, 2, (path,), partial(read, z)) for z in range(shape[0])]
        return [whole(len(shape), (path,), read)]
    pages = count_pages(path) if suffix in TIFF else 1
    if pages > 1 and sections:
        return [ImageFile(path, key, page, 2, (path,), partial(picture, path, page)) for page in range(pages)]
    if pages > 1:
        return [whole(3, (path,), partial(read_stack, path))]
    return [whole(2, (path,), partial(picture, path))]
