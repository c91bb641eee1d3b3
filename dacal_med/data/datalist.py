# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``datalist.json``: which images belong to which domain, and what their labels mean.

The layout follows the Medical Segmentation Decathlon's ``dataset.json`` as MONAI reads it, with the single ``training``
list replaced by ``source`` (labelled), ``target_train`` (images only) and ``target_val`` (labelled, evaluation alone).
"""

from __future__ import annotations

import difflib
import json
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from dacal_med.data.modality import modality_of
from dacal_med.data.places import existing, find_place
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.io.image import LARGEST_MM, SMALLEST_MM
from dacal_med.io.reading import is_picture, read_header
from dacal_med.kinds import is_number

FILE_NAME = "datalist.json"
GROUP = "group"
PATIENT = "patient"
IGNORE_NAMES = frozenset({"ignore", "void", "unlabeled", "unlabelled"})
_REQUIRED_KEYS = ("labels", "source", "target_train")
_KNOWN_KEYS = (*_REQUIRED_KEYS, "target_val", "name", "spacing_mm", "modality")
_OF_CASES = ("labels", "cases")
_SHOWN = 200  # characters of a value in a message


@dataclass(frozen=True)
class Datalist:
    """A data set of two domains, with every path absolute and checked to exist.

    Attributes:
        name: title for reports.
        root: folder of the ``datalist.json``.
        class_names: one name per network channel.
        label_values: the value in the label files for each channel.
        ignore_values: values in the label files that count for nothing.
        source: labelled entries ``{"image", "label"}``, with ``"group"`` and ``"patient"`` where the file gives them.
            No patient of ``target_val`` is in another list.
        target_train: entries ``{"image"}``, and the same; a label given in the file is dropped, so that nothing can
            learn from it.
        target_val: labelled entries for evaluation alone, as in ``source``; may be empty. Scores are also reported by
            ``"group"``: the scanner, site or condition of an image.
        spacing: mm per spatial axis, or one number for all of them, or None where the file gives none.
        modality: ``{"source": ..., "target": ...}``, each "CT", "MR", "RGB" or any other name.
    """

    name: str
    root: Path
    class_names: tuple[str, ...]
    label_values: tuple[int, ...]
    ignore_values: tuple[int, ...]
    source: tuple[dict[str, str], ...]
    target_train: tuple[dict[str, str], ...]
    target_val: tuple[dict[str, str], ...] = ()
    spacing: tuple[float, ...] | None = None
    modality: dict[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of network channels, background included."""
        return len(self.class_names)

    def working_spacing(self, spatial_dims: int) -> tuple[float, ...]:
        """Voxel size in mm to resample to, along (right, anterior, superior).

        The ``spacing_mm`` of the file where given; ones for pictures, which have no scale; otherwise the median over
        the headers of the training images (``source`` and ``target_train``, never ``target_val``).

        Args:
            spatial_dims: number of spatial axes of the network.

        Returns:
            One number per spatial axis.

        Raises:
            InputError: the file's ``spacing_mm`` or an image has another number of axes.
        """
        if self.spacing is not None:
            if len(self.spacing) not in (1, spatial_dims):
                raise InputError(
                    f"{self.root / FILE_NAME}: 'spacing_mm' has {len(self.spacing)} numbers; "
                    f"wanted 1 or {spatial_dims}, one per spatial axis."
                )
            return self.spacing * spatial_dims if len(self.spacing) == 1 else self.spacing
        images = [entry["image"] for entry in (*self.source, *self.target_train)]
        if all(is_picture(image) for image in images):
            return (1.0,) * spatial_dims
        sizes = []
        for image in images:
            spacing = read_header(image).patient_spacing
            if len(spacing) != spatial_dims:
                raise InputError(f"{image}: found {len(spacing)} spatial axes; wanted {spatial_dims}.")
            sizes.append(spacing)
        return tuple(round(median(column), 4) for column in zip(*sizes, strict=True))


def load_datalist(dataset_dir: str | Path) -> Datalist:
    """Read and check a ``datalist.json``.

    Args:
        dataset_dir: the folder that holds ``datalist.json``, or that file itself.

    Returns:
        The data set, every path absolute.

    Raises:
        InputError: the file is missing or malformed, a key is missing or wrong, an image or label file does not exist,
            or an image or patient used for evaluation is also used for training.
    """
    path = _file(dataset_dir)
    content = _read_json(path)
    root = path.resolve().parent
    class_names, label_values, ignore_values = _labels(path, content["labels"])
    source = _entries(path, content, "source", root, labelled=True)
    target_train = _entries(path, content, "target_train", root, labelled=False)
    target_val = _entries(path, content, "target_val", root, labelled=True)
    if not source:
        raise InputError(f"{path}: 'source' is empty; wanted at least one labelled image.")
    if not target_train:
        raise InputError(f"{path}: 'target_train' is empty; wanted at least one unlabelled image of the target domain.")
    _reject_overlap(path, source, target_train, target_val)
    return Datalist(
        name=str(content.get("name", root.name)),
        root=root,
        class_names=class_names,
        label_values=label_values,
        ignore_values=ignore_values,
        source=source,
        target_train=target_train,
        target_val=target_val,
        spacing=_spacing(path, content.get("spacing_mm")),
        modality=_modality(path, content.get("modality"), source, target_train),
    )


def load_cases(dataset_dir: str | Path) -> Datalist:
    """Read and check a ``datalist.json`` of labelled cases of one site: ``labels`` and ``cases``.

    The name ``cases``, and not ``target_val``, so that nobody fits on what was meant for evaluation.

    Args:
        dataset_dir: the folder that holds ``datalist.json``, or that file itself.

    Returns:
        The cases as ``source``, every path absolute; ``target_train`` and ``target_val`` are empty.

    Raises:
        InputError: the file is missing or malformed, a key is missing or wrong, a file does not exist, or a case is
            listed twice.
    """
    path = _file(dataset_dir)
    content = _read_json(path, _OF_CASES, (*_OF_CASES, "name"))
    root = path.resolve().parent
    class_names, label_values, ignore_values = _labels(path, content["labels"])
    cases = _entries(path, content, "cases", root, labelled=True)
    _reject_repeated(path, {"cases": _resolved(cases)})
    name = str(content.get("name", root.name))
    return Datalist(name, root, class_names, label_values, ignore_values, source=cases, target_train=())


def _file(dataset_dir: str | Path) -> Path:
    """The file that a folder or the file itself stands for."""
    given = existing(given_path(dataset_dir, "dataset_dir", home=True))
    return given_path(given if given.suffix == ".json" else given / FILE_NAME, "dataset_dir")


def _read_json(
    path: Path, required: Sequence[str] = _REQUIRED_KEYS, known: Sequence[str] = _KNOWN_KEYS
) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: not found; wanted a '{FILE_NAME}' with the keys {', '.join(required)}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}."
        ) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}).") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, lists in lists in lists
        raise InputError(f"{path}: not a datalist: {type(error).__name__}: {error}.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: found a JSON {type(content).__name__}; wanted an object with keys.")
    for key in content:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if key not in known and close and close[0] not in content:
            raise InputError(f"{path}: found the key {_shown(key)}; did you mean '{close[0]}'?")
    missing = [key for key in required if key not in content]
    if missing:
        raise InputError(f"{path}: missing the key(s) {', '.join(missing)}; found {_shown(list(content))}.")
    return content


def _labels(path: Path, labels: Any) -> tuple[tuple[str, ...], tuple[int, ...], tuple[int, ...]]:
    if not isinstance(labels, dict) or not labels:
        raise InputError(
            f'{path}: \'labels\' is {_shown(labels)}; wanted an object such as {{"0": "background", ...}}.'
        )
    names: dict[int, str] = {}
    for key, name in labels.items():
        try:
            value = int(key)
        except ValueError as error:
            raise InputError(
                f"{path}: 'labels' has the key {_shown(key)}; wanted integers, the values found in the label files."
            ) from error
        if not isinstance(name, str) or not name.strip():
            raise InputError(f"{path}: label {_shown(key)} is named {_shown(name)}; wanted a non-empty name.")
        if value in names:
            raise InputError(f"{path}: 'labels' gives the value {value} twice.")
        names[value] = name.strip()
    ignore = tuple(sorted(value for value, name in names.items() if name.lower() in IGNORE_NAMES))
    values = tuple(sorted(value for value in names if value not in ignore))
    classes = tuple(names[value] for value in values)
    if len(classes) < 2:
        raise InputError(f"{path}: 'labels' names {len(classes)} class(es); wanted at least 2, background included.")
    repeated = sorted({name for name in classes if classes.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: 'labels' uses the name(s) {', '.join(repeated)} more than once.")
    return classes, values, ignore


def _entries(
    path: Path, content: dict[str, Any], key: str, root: Path, *, labelled: bool
) -> tuple[dict[str, str], ...]:
    items = content.get(key) or []
    if not isinstance(items, list):
        raise InputError(f"{path}: '{key}' is a {type(items).__name__}; wanted a list of {{\"image\": path}}.")
    wanted = ("image", "label") if labelled else ("image",)
    entries: list[dict[str, str]] = []
    absent: list[str] = []
    for number, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError(
                f"{path}: '{key}'[{number}] is {_shown(item)}; wanted an object with {' and '.join(wanted)}."
            )
        entry: dict[str, str] = {}
        for part in wanted:
            name = item.get(part)
            if not isinstance(name, str) or not name:
                raise InputError(f"{path}: '{key}'[{number}] has no '{part}' (found {_shown(item)}); wanted a path.")
            entry[part], there = find_place(root, name)
            if not there:
                absent.append(f"{_shown(entry[part])} ('{key}'[{number}], {part})")
        for part in (GROUP, PATIENT):
            given = _optional_name(item, part, f"{path}: '{key}'[{number}]")
            if given is not None:
                entry[part] = given
        entries.append(entry)
    with_group = [number for number, entry in enumerate(entries) if GROUP in entry]
    if with_group and len(with_group) < len(entries):
        number = next(number for number in range(len(entries)) if number not in set(with_group))
        raise InputError(
            f"{path}: '{key}'[{number}] has no '{GROUP}', but '{key}'[{with_group[0]}] has one; wanted one for every "
            f"image of '{key}', or for none."
        )
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        windows = "; wanted paths from this folder, with '/' between folders" if "\\" in absent[0] else ""
        raise InputError(f"{path}: names files that do not exist: {'; '.join(absent[:3])}{more}{windows}.")
    for number, entry in enumerate(entries):
        if "label" in entry and os.path.samefile(entry["image"], entry["label"]):
            raise InputError(
                f"{path}: '{key}'[{number}] has {_shown(entry['image'])} for both image and label; wanted two files."
            )
    return tuple(entries)


def _optional_name(item: Mapping[str, Any], part: str, where: str) -> str | None:
    """The group or patient of an item, None where it has none."""
    if part not in item:
        for name in item:
            if difflib.get_close_matches(name, [part], cutoff=0.8):
                raise InputError(f"{where} has the key {_shown(name)}; did you mean '{part}'?")
        return None
    name = item[part]
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{where} has the {part} {_shown(name)}; wanted a non-empty name.")
    return unicodedata.normalize("NFC", name.strip())  # as macOS writes it, a patient would be two


def _shown(value: Any) -> str:
    """A value of the file as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _reject_overlap(
    path: Path,
    source: Sequence[dict[str, str]],
    target_train: Sequence[dict[str, str]],
    target_val: Sequence[dict[str, str]],
) -> None:
    """An image may appear once per list, and no image or patient used for evaluation may be trained on."""
    lists = {"source": source, "target_train": target_train, "target_val": target_val}
    images = {key: _resolved(entries) for key, entries in lists.items()}
    _reject_repeated(path, images)
    for key in ("target_train", "source"):
        shared = sorted(set(images[key]) & set(images["target_val"]))
        if shared:
            raise InputError(
                f"{path}: {shared[0]} is in both '{key}' and 'target_val' ({len(shared)} such image(s)); "
                "wanted evaluation images that are never trained on."
            )
    patients = {key: {entry[PATIENT] for entry in entries if PATIENT in entry} for key, entries in lists.items()}
    for key in ("target_train", "source"):
        shared = sorted(patients[key] & patients["target_val"])
        if shared:
            raise InputError(
                f"{path}: patient {_shown(shared[0])} is in both '{key}' and 'target_val' ({len(shared)} such "
                "patient(s)); wanted evaluation patients that are never trained on, and no id for two people."
            )


def _resolved(entries: Sequence[dict[str, str]]) -> list[str]:
    return [str(Path(entry["image"]).resolve()) for entry in entries]


def _reject_repeated(path: Path, images: Mapping[str, Sequence[str]]) -> None:
    for key, names in images.items():
        twice = sorted(name for name, count in Counter(names).items() if count > 1)
        if twice:
            raise InputError(f"{path}: '{key}' lists {twice[0]} more than once; wanted every image once.")


def _spacing(path: Path, spacing: Any) -> tuple[float, ...] | None:
    if spacing is None:
        return None
    numbers = spacing if isinstance(spacing, list) else [spacing]
    valid = [is_number(n) and SMALLEST_MM <= n <= LARGEST_MM for n in numbers]
    if not numbers or not all(valid):
        raise InputError(
            f"{path}: 'spacing_mm' is {_shown(spacing)}; wanted a positive number of mm, or one per axis, from "
            f"{SMALLEST_MM:g} to {LARGEST_MM:g}."
        )
    return tuple(float(n) for n in numbers)


def _modality(
    path: Path, given: Any, source: Sequence[dict[str, str]], target_train: Sequence[dict[str, str]]
) -> dict[str, str]:
    given = {} if given is None else given
    if (
        not isinstance(given, dict)
        or set(given) - {"source", "target"}
        or not all(isinstance(name, str) and name for name in given.values())
    ):
        raise InputError(f'{path}: \'modality\' is {_shown(given)}; wanted {{"source": "CT", "target": "MR"}}.')
    return {
        "source": modality_of([entry["image"] for entry in source], f"{path}: source", given.get("source")),
        "target": modality_of([entry["image"] for entry in target_train], f"{path}: target", given.get("target")),
    }
