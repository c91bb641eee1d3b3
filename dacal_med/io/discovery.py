# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What there is to segment in a folder, and names for it that tell nothing about a patient."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from dacal_med.io.dicom import open_series
from dacal_med.io.dicom_files import PERSONAL, grouped, is_dicom
from dacal_med.io.errors import InputError
from dacal_med.io.files import is_special, walk
from dacal_med.io.image import Opened
from dacal_med.io.reading import image_stem, is_image_file, is_picture, open_file

_UID = re.compile(r"\b\d+(?:\.\d+){4,}\b")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 120  # characters of a name: with "_confidence.nii.gz" a file of any system, encrypted ones too


@dataclass(frozen=True)
class Source:
    """One case as it lies on the disk.

    Attributes:
        name: of the case and of its output files.
        files: of the case: one file, or the files of a DICOM series.
        dicom: whether they are DICOM.
        root: the folder that was searched.
        identify: whether messages may tell file names, patients and UIDs.
        secrets: what they must not tell otherwise.
    """

    name: str
    files: tuple[Path, ...]
    dicom: bool
    root: Path
    identify: bool
    secrets: tuple[str, ...] = ()

    def file_name(self, index: int) -> str:
        """What messages call the n-th file: its path below the root, or only its number in the sorted list."""
        if self.identify:
            return _relative(self.files[index], self.root)
        return f"file {index + 1} of {len(self.files)}"

    def open(self) -> Opened:
        """Open the image.

        Raises:
            InputError: it cannot be read.
        """
        if self.dicom:
            return open_series(self.files, "the series", self.file_name)
        return open_file(self.files[0], self.file_name(0) if self.identify else "the file")

    def clean(self, text: str) -> str:
        """Take names and UIDs out of a message that a library wrote, unless they are asked for."""
        if self.identify:
            return text
        paths = {
            str(part) for file in self.files for part in (file, file.resolve(), file.name, _relative(file, self.root))
        }
        folders = {str(folder) for file in self.files for folder in (file.parent, file.resolve().parent)}
        # A folder's bare name may be any word; as part of a path it went with the file.
        folders = {folder for folder in folders if os.sep in folder}
        for secret in sorted({*paths, *folders, *self.secrets}, key=len, reverse=True):
            if len(secret) > 2:
                text = text.replace(secret, "<hidden>")
        return _UID.sub("<UID>", text)


def discover(place: str | Path, spatial_dims: int, identify: bool, skip: Path | None = None) -> list[Source]:
    """Find the cases in a folder and all folders below it, or the one case that a file is.

    DICOM files are grouped by SeriesInstanceUID wherever they lie, objects without an image (reports, segmentations)
    are left out, and files of other kinds are ignored. Cases are numbered in the order of their series' UIDs and their
    files' paths, images in files first.

    Args:
        place: folder or file.
        spatial_dims: of the model: pictures are taken for 2, volumes and DICOM for 3.
        identify: name the cases after files and patients instead of numbering them.
        skip: a folder below ``place`` to leave out: the output folder.

    Raises:
        InputError: no such place, or nothing in it.
    """
    root = Path(place)
    if not os.path.exists(root):  # nor is there one whose name is too long
        raise InputError("dataset_dir: found no such file or folder; wanted images to segment")
    if not root.is_dir() and is_special(root):
        raise InputError("dataset_dir: found a pipe, socket or device; wanted a file or folder of images")
    files = list(walk(root, None if skip is None else skip.resolve())) if root.is_dir() else [root]
    images: list[Path] = []
    dicom: list[Path] = []
    root = root if root.is_dir() else root.parent
    for file in files:
        if is_image_file(file):
            if is_picture(file) == (spatial_dims == 2):
                images.append(file)
        elif is_dicom(file):
            dicom.append(file)
    sources = [Source(_file_stem(file), (file,), False, root, identify) for file in images]
    for members in grouped(dicom):
        secrets = {part for _, found in members for tag in PERSONAL for part in _parts(found.get(tag, ""))}
        paths = tuple(file for file, _ in members)
        stem = _UNSAFE.sub("-", f"{members[0][1].get('PatientID', '')}_{members[0][1].get('SeriesNumber', '')}")
        sources.append(Source(stem.strip("-_") or "series", paths, True, root, identify, tuple(secrets)))
    if not sources:
        wanted = "PNG, JPEG or TIFF pictures" if spatial_dims == 2 else "NIfTI, NRRD or DICOM images"
        raise InputError(f"dataset_dir: found {len(files)} file(s), none that this model can read; wanted {wanted}")
    return _named(sources, identify)


def _named(sources: list[Source], identify: bool) -> list[Source]:
    taken = {"summary"}  # the JSON of all cases
    named = []
    for number, source in enumerate(sources, 1):
        stem = source.name[:_LONGEST] if identify else f"case_{number:04d}"
        unique = next(name for name in chain([stem], (f"{stem}_{k}" for k in count(2))) if name not in taken)
        taken.add(unique)
        named.append(Source(unique, source.files, source.dicom, source.root, identify, source.secrets))
    return named


def _parts(value: str) -> set[str]:
    """A value and, as names have them, its parts."""
    return {value, *re.split(r"[\^= ]+", value)}


def _file_stem(file: Path) -> str:
    return _UNSAFE.sub("-", image_stem(file)) or "image"


def _relative(file: Path, root: Path) -> str:
    return os.path.relpath(file, root)


def personal(source: Source) -> dict[str, Any]:
    """Where a case comes from, for its JSON if that was asked for."""
    return {"files": [_relative(file, source.root) for file in source.files]} if source.identify else {}
