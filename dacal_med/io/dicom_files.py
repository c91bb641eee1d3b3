# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Which files are DICOM, whatever they are called, and which series they belong to."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset

from dacal_med.io.errors import InputError
from dacal_med.io.files import MOST_FILES, walk

PERSONAL = ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber", "InstitutionName", "StudyID")
_MAGIC = b"DICM"
_BARE = (b"\x02\x00", b"\x08\x00")  # the first group of an object without preamble
_SUFFIXES = (".dcm", ".ima", ".dicom")
# Segmentations (also as label maps) and parametric maps have rows and are results, not images of a patient.
_DERIVED = {
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.66.7",
    "1.2.840.10008.5.1.4.1.1.30",
}


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings, which quote values of the header, out of the log."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def read_dataset(file: Path, name: str, **options: Any) -> Dataset:
    """Read a DICOM object, with or without preamble.

    Args:
        file: the file.
        name: what messages call it.
        options: of ``pydicom.dcmread``.

    Raises:
        InputError: it is no DICOM object, or cut off in its header.
    """
    try:
        dataset = pydicom.dcmread(file, force=True, **options)
        if "SOPClassUID" not in dataset and "Rows" not in dataset:
            raise ValueError("neither a class nor rows")
        return dataset
    except Exception as error:  # pydicom raises whatever a damaged file leads it to
        raise InputError(f"{name}: cannot be read as DICOM ({type(error).__name__}); wanted a complete file") from error


def is_dicom(file: Path) -> bool:
    """Whether a file is DICOM by its content or, where that cannot tell, by its suffix."""
    if file.name.upper() == "DICOMDIR":
        return False
    named = file.name.lower().endswith(_SUFFIXES)
    try:
        with file.open("rb") as stream:
            start = stream.read(132)
    except OSError:
        return named
    return named or start[128:] == _MAGIC or (start[:2] in _BARE and _has_class(file))


def _has_class(file: Path) -> bool:
    try:
        with quiet():
            return "SOPClassUID" in pydicom.dcmread(file, force=True, specific_tags=["SOPClassUID"])
    except Exception:  # by chance its first bytes were those of DICOM
        return False


def series_of_file(file: Path) -> tuple[str, dict[str, str], str] | None:
    """The series that a file belongs to, what must stay private, and what single slices of a series have alike.

    None for an object without an image.
    """
    alike = ("SOPClassUID", "Modality", "Rows", "Columns")
    tags = [*alike, "SeriesInstanceUID", "SeriesNumber", "NumberOfFrames", *PERSONAL]
    try:
        with quiet():
            header = read_dataset(file, "", stop_before_pixels=True, specific_tags=tags)
            found = {tag: str(header[tag].value) for tag in (*PERSONAL, "SeriesNumber") if tag in header}
            uid = str(header.get("SeriesInstanceUID", "")) or f"~{file.parent}"
            kind = str(header.get("SOPClassUID", ""))
            single = int(header.get("NumberOfFrames") or 1) == 1
            same = f"{file.parent} {[str(header.get(tag)) for tag in alike]}" if single else f"~{file}"
    except Exception:  # whatever is wrong with it is told when the case is read
        return f"~{file}", {}, f"~{file}"
    return None if kind in _DERIVED or (kind and "Rows" not in header) else (uid, found, same)


def grouped(files: Iterable[Path]) -> list[list[tuple[Path, dict[str, str]]]]:
    """Return the DICOM files among some by their series, in the order of its UID, each with what must stay private.

    Where anonymization gave each slice of a folder a series of its own, they are one again.
    """
    series: dict[str, list[tuple[Path, dict[str, str]]]] = {}
    slices: dict[str, list[str]] = {}
    for file in files:
        found = series_of_file(file)
        if found is not None:
            uid, personal, same = found
            series.setdefault(uid, []).append((file, personal))
            slices.setdefault(same, []).append(uid)
    for uids in slices.values():
        if len(uids) > 1 and all(len(series[uid]) == 1 for uid in uids):
            series[uids[0]] = [series.pop(uid)[0] for uid in uids]
    return [sorted(members, key=lambda member: member[0]) for _, members in sorted(series.items())]


def series_of(folder: Path) -> list[Path]:
    """Return the files of the one series that a folder holds, wherever below it they lie.

    Raises:
        InputError: it holds several series or none, or far more files than a series.
    """
    files = list(islice(walk(folder), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise InputError(f"{folder}: found more than {MOST_FILES} files; wanted a folder of one DICOM series")
    series = grouped(file for file in files if is_dicom(file))
    if len(series) != 1:
        raise InputError(
            f"{folder}: found {len(series)} DICOM series (a damaged file counts as one); wanted a folder of one"
        )
    return [file for file, _ in series[0]]
