# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From a path to an image: the one way in which training, preparation, export and the clinical site read."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from dacal_med.io import nifti, nrrd, pictures
from dacal_med.io.dicom import open_series
from dacal_med.io.dicom_files import is_dicom, series_of
from dacal_med.io.errors import InputError
from dacal_med.io.files import file_state
from dacal_med.io.image import Header, Image, Opened

WANTED = (
    "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd), DICOM (a folder of one series, or a "
    "multi-frame file), PNG, JPEG, TIFF, BMP, GIF or PPM"
)
_HEADERS = 100_000  # kept, newest last


def is_picture(path: str | Path) -> bool:
    """Whether a file's name is that of a picture, which has no millimeters."""
    return str(path).lower().endswith(pictures.SUFFIXES)


def is_image_file(path: str | Path) -> bool:
    """Whether a file's name is that of an image of any format but DICOM, whose files are named anyhow."""
    suffixes = (*nifti.SUFFIXES, *nrrd.SUFFIXES, *nrrd.META_SUFFIXES, *pictures.SUFFIXES)
    return str(path).lower().endswith(suffixes)


def image_stem(path: str | Path) -> str:
    """Return the name of an image file without its suffix, of a folder its whole name."""
    path = Path(path)
    lower = path.name.lower()
    ends = (".seg.nrrd", *nifti.SUFFIXES, *nrrd.SUFFIXES, *nrrd.META_SUFFIXES, *pictures.SUFFIXES)
    found = max((end for end in ends if lower.endswith(end)), key=len, default="")
    return path.name[: len(path.name) - len(found)]


def open_file(path: Path, name: str, *, as_label: bool = False) -> Opened:
    """Open a file of an image by its name's suffix.

    Args:
        path: the file.
        name: what messages call it.
        as_label: see :func:`read_image`.

    Raises:
        InputError: it cannot be read, or is of another kind.
    """
    lower = path.name.lower()
    if lower.endswith(nifti.SUFFIXES):
        return nifti.open_nifti(path, name)
    if lower.endswith(nrrd.SUFFIXES):
        return nrrd.open_nrrd(path, name)
    if lower.endswith(nrrd.META_SUFFIXES):
        return nrrd.open_meta_image(path, name)
    if lower.endswith(pictures.SUFFIXES):
        return pictures.open_picture(path, name, as_label=as_label)
    raise InputError(f"{name}: found a file type that cannot be read; wanted {WANTED}.")


def open_image(path: str | Path, *, as_label: bool = False) -> Opened:
    """Open an image, reading its header alone where the format allows.

    Args:
        path: file, or folder that holds one DICOM series.
        as_label: see :func:`read_image`.

    Raises:
        InputError: it is missing, cannot be read, or is a folder of several series or none.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; wanted an image.")
    if path.is_dir():
        files = series_of(path)
        return open_series(files, str(path), lambda index: f"{path}: {files[index].relative_to(path)}")
    if not path.is_file():  # a pipe would be waited for without end
        raise InputError(f"{path}: found no regular file or folder; wanted an image.")
    if not is_image_file(path) and is_dicom(path):
        return open_series([path], str(path), lambda _: str(path))
    return open_file(path, str(path), as_label=as_label)


def read_header(path: str | Path, *, as_label: bool = False) -> Header:
    """Read the header of an image; the same file is opened once for it, however often it is asked for.

    Args:
        path: file, or folder that holds one DICOM series.
        as_label: see :func:`read_image`.

    Raises:
        InputError: see :func:`open_image`.
    """
    return _MEMORY.header(str(path), as_label)


def read_image(path: str | Path, *, as_label: bool = False, keep: bool = False) -> Image:
    """Read every voxel of an image.

    Args:
        path: file, or folder that holds one DICOM series.
        as_label: whether it is a label: pictures then give the numbers of their palette instead of its colors.
        keep: whether the voxels are kept for whoever reads the image next, as far as :func:`keep_voxels` has room.

    Returns:
        The image: ``array`` of ``(channels, *spatial)`` in the file's own type, and its header with the affine in mm.

    Raises:
        InputError: see :func:`open_image`; or voxels are missing or not one real number each.
    """
    return _MEMORY.image(str(path), as_label, keep)


def keep_voxels(room: int) -> None:
    """Say how many bytes of voxels ``read_image(keep=True)`` may keep; 0 forgets those that are kept.

    Checks read every voxel before training does; what they keep is not read a second time.
    """
    _MEMORY.room = room
    if room == 0:
        _MEMORY.voxels.clear()


class _Memory:
    """Headers that were read, and voxels that are waiting to be read again, each as long as its files are the same."""

    def __init__(self) -> None:
        self.headers: OrderedDict[tuple[str, bool], tuple[list[list[int]], Header]] = OrderedDict()
        self.voxels: dict[tuple[str, bool], tuple[list[list[int]], Image]] = {}
        self.room = 0

    def header(self, path: str, as_label: bool) -> Header:
        state = file_state(path)
        known = self.headers.get((path, as_label))
        if known is not None and state and known[0] == state:
            return known[1]
        return self._remember((path, as_label), state, open_image(path, as_label=as_label).header)

    def image(self, path: str, as_label: bool, keep: bool) -> Image:
        state = file_state(path)
        waiting = self.voxels.get((path, as_label)) if keep else self.voxels.pop((path, as_label), None)
        if waiting is not None and waiting[0] == state:
            return waiting[1]
        opened = open_image(path, as_label=as_label)
        self._remember((path, as_label), state, opened.header)
        image = Image(opened.voxels(), opened.header)
        if keep:
            taken = sum(other.array.nbytes for _, other in self.voxels.values())
            if taken + image.array.nbytes <= self.room:
                self.voxels[path, as_label] = (state, image)
        return image

    def _remember(self, key: tuple[str, bool], state: list[list[int]], header: Header) -> Header:
        self.headers[key] = (state, header)
        if len(self.headers) > _HEADERS:
            self.headers.popitem(last=False)
        return header


_MEMORY = _Memory()
