# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``class_counts.json``: voxels of each class in each source label, so that no training reads 24966 labels for them.

Written beside ``datalist.json`` by ``python -m dacal_med prepare``. The size of every label file is kept with its
counts, to tell when a label was replaced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dacal_med.data.datalist import Datalist
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_bytes
from dacal_med.io.reading import read_image

FILE_NAME = "class_counts.json"
_VERSION = 1


def write_class_counts(folder: Path, counts: Mapping[str, Mapping[str, int]]) -> None:
    """Write the counts of a data set.

    Args:
        folder: of the data set.
        counts: voxels by class name of each label file, by its path relative to ``folder``; the same names for all.

    Raises:
        InputError: the file cannot be written.
    """
    classes = list(next(iter(counts.values()), {}))
    labels = {
        name: {"bytes": (folder / name).stat().st_size, "voxels": [voxels[name] for name in classes]}
        for name, voxels in counts.items()
    }
    content = {"version": _VERSION, "classes": classes, "labels": labels}
    write_bytes(folder / FILE_NAME, (json.dumps(content) + "\n").encode())


def read_class_counts(
    datalist: Datalist, entries: Sequence[Mapping[str, str]] | None = None, *, count_missing: bool = False
) -> np.ndarray:
    """Read the counts of source images, for the ``counts`` of :class:`dacal_med.data.RareClassSampling`.

    Args:
        datalist: the data set.
        entries: source entries, such as those that are not held out; all of them by default.
        count_missing: count in the label files, with a progress bar, where the data set has no ``class_counts.json``;
            an error otherwise.

    Returns:
        int64 ``(entries, classes)``, in the order of ``entries`` and of ``datalist.class_names``.

    Raises:
        InputError: the file is missing or damaged, lacks a class or a label, or was made from another label file.
    """
    wanted = list(datalist.source if entries is None else entries)
    path = datalist.root / FILE_NAME
    again = "prepare the data set again, or delete the file and have the labels counted"
    if not path.is_file():
        if count_missing:
            return _count(datalist, wanted)
        raise InputError(
            f"{path}: not found; wanted the counts that `python -m dacal_med prepare` writes: prepare the data set "
            "again, or have the labels counted (count_missing)."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        classes: list[str] = content["classes"]
        labels: dict[str, Any] = content["labels"]
        table = {name: (int(row["bytes"]), [int(voxels) for voxels in row["voxels"]]) for name, row in labels.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: damaged ({error!r}); {again}.") from error
    absent = [name for name in datalist.class_names if name not in classes]
    if absent:
        raise InputError(f"{path}: found no counts of {', '.join(absent)}; wanted those of datalist.json: {again}.")
    order = [classes.index(name) for name in datalist.class_names]
    counts = np.zeros((len(wanted), len(order)), dtype=np.int64)
    for row, entry in zip(counts, wanted, strict=True):
        label = Path(entry["label"])
        name = label.relative_to(datalist.root).as_posix() if label.is_relative_to(datalist.root) else str(label)
        if name not in table:
            raise InputError(f"{path}: found no counts of {label}; wanted those of every source label: {again}.")
        size, voxels = table[name]
        found = label.stat().st_size
        if found != size:
            raise InputError(
                f"{path}: made from {label} with {size} bytes; found {found} bytes: the label was replaced; {again}."
            )
        row[:] = np.asarray(voxels, dtype=np.int64)[order]
    return counts


def _count(datalist: Datalist, entries: Sequence[Mapping[str, str]]) -> np.ndarray:
    counts = np.zeros((len(entries), datalist.num_classes), dtype=np.int64)
    for row, entry in zip(counts, tqdm(entries, desc="class counts"), strict=True):
        array = read_image(entry["label"], as_label=True).array
        row[:] = [np.count_nonzero(array == value) for value in datalist.label_values]
    return counts
