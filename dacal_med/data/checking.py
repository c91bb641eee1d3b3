# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Read a whole data set once before hours of training do, and say what is wrong and where."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import ignite.distributed as idist
import numpy as np
from tqdm import tqdm

from dacal_med.data.checked import CheckedFiles
from dacal_med.data.datalist import FILE_NAME, Datalist
from dacal_med.data.modality import keep_what_is_checked
from dacal_med.io.errors import InputError
from dacal_med.io.image import Header, check_place, finite_in_single
from dacal_med.io.reading import read_header, read_image


@dataclass(frozen=True)
class CheckSummary:
    """What :func:`check_data` read.

    Attributes:
        images: number of images read.
        labels: number of label files read.
        label_voxels: voxels per class name, over all label files read; ignored voxels under "ignore".
    """

    images: int
    labels: int
    label_voxels: dict[str, int]


def check_data(
    datalist: Datalist, spatial_dims: int, in_channels: int, record: str | Path = "", *, progress: bool = True
) -> CheckSummary:
    """Read every header, then every voxel, of a data set.

    Headers come first, so that a wrong shape or a missing channel is found in seconds. In a distributed run each rank
    reads the voxels of its share.

    Args:
        datalist: from :func:`dacal_med.data.datalist.load_datalist`.
        spatial_dims: number of spatial axes of the network.
        in_channels: number of image channels of the network.
        record: file that remembers whose voxels were good, so that they are not read again while size and time of the
            file stay the same; empty for none.
        progress: whether to show a progress bar.

    Returns:
        What was checked, by this rank, whether read now or before.

    Raises:
        InputError: a file is unreadable or truncated, has another number of axes or channels, holds NaN, infinity or a
            label value that the datalist does not name, or a label does not lie on its image. The message names the
            file.
    """
    pairs = list(_pairs(datalist))
    keep_what_is_checked()
    notes: dict[str, list[str]] = {}
    for image, label in tqdm(pairs, desc="headers", disable=not progress):
        header = read_header(image)
        for note in header.notes:
            notes.setdefault(note, []).append(image)
        _check_axes(image, header, spatial_dims)
        if header.channels != in_channels:
            raise InputError(f"{image}: found {header.channels} channel(s); wanted {in_channels}.")
        if label is not None:
            label_header = read_header(label, as_label=True)
            if label_header.channels != 1:
                raise InputError(f"{label}: found {label_header.channels} channels; wanted 1, holding label values.")
            check_place(header, image, label_header, label)
    for note, found in notes.items():
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        warnings.warn(f"{found[0]}{more}: {note}", stacklevel=2)
    counts = dict.fromkeys((*datalist.class_names, *(("ignore",) if datalist.ignore_values else ())), 0)
    labels = 0
    share = pairs[idist.get_rank() :: idist.get_world_size()]
    known = CheckedFiles(record, idist.get_rank())
    try:
        for image, label in tqdm(share, desc="voxels", disable=not progress):
            if not known.has_image(image):
                _check_image(image)
                known.add_image(image)
            if label is not None:
                labels += 1
                _count_labels(label, datalist, counts, known)
    finally:
        known.write()
    return CheckSummary(images=len(share), labels=labels, label_voxels=counts)


def _pairs(datalist: Datalist) -> Iterator[tuple[str, str | None]]:
    for entry in (*datalist.source, *datalist.target_train, *datalist.target_val):
        yield entry["image"], entry.get("label")


def _check_axes(path: str, header: Header, spatial_dims: int) -> None:
    shape = header.shape
    if len(shape) != spatial_dims:
        raise InputError(f"{path}: found {len(shape)} spatial axes, shape {shape}; wanted {spatial_dims}.")
    if min(shape) < 2:
        raise InputError(
            f"{path}: found a single slice, shape {shape}; wanted {spatial_dims} axes of 2 voxels or more."
        )


def _check_image(path: str) -> None:
    array = read_image(path, keep=True).array
    bad = int(array.size - finite_in_single(array).sum())
    if bad:
        raise InputError(
            f"{path}: found {bad} voxel(s) that are NaN or infinite in single precision; wanted finite values."
        )


def _count_labels(path: str, datalist: Datalist, counts: dict[str, int], known: CheckedFiles) -> None:
    names = dict(zip(datalist.label_values, datalist.class_names, strict=True))
    names.update(dict.fromkeys(datalist.ignore_values, "ignore"))
    found = known.label_values(path)
    if found is None or not set(found) <= set(names):
        found = _values(path, names, datalist)
        known.add_label(path, found)
    for value, number in found.items():
        counts[names[value]] += number


def _values(path: str, names: Collection[int], datalist: Datalist) -> dict[int, int]:
    array = read_image(path, as_label=True, keep=True).array
    # Counting a few known values is many times faster than sorting a large volume.
    found = {value: int(np.count_nonzero(array == value)) for value in names}
    if sum(found.values()) != array.size:
        strange = np.unique(array[~np.isin(array, list(names))])
        raise InputError(
            f"{path}: found the label value(s) {[float(value) for value in strange[:8]]}; wanted only {sorted(names)}."
            f"{_hint(strange, datalist)}"
        )
    return found


def _hint(strange: np.ndarray, datalist: Datalist) -> str:
    """Return what most likely happened where label files hold values that the datalist does not name, or nothing."""
    path = datalist.root / FILE_NAME
    if strange.size == 1 and strange[0] == 255:
        return f' If such voxels are to be ignored, {path} must say so in \'labels\': {{"255": "ignore"}}.'
    classes = len(datalist.label_values)
    consecutive = datalist.label_values == tuple(range(classes))
    if consecutive and all(classes <= value <= 255 and value == int(value) for value in strange):
        return (
            f" Does the file hold the data set's own ids, where {path} counts {classes} classes from 0? Cityscapes, "
            "for one, has label ids up to 33 in *_labelIds.png and the 19 train ids in *_labelTrainIds.png. Name the "
            "ids that are in the files, or give the converted files."
        )
    return ""
