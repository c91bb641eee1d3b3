# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Labels of streets: tables from the owners' values to the train ids of Cityscapes, reading, and checks by sample."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from dacal_med.data.street_labels import IGNORED, STREET_LABELS, TRAIN_NAMES, StreetLabel
from dacal_med.io.errors import InputError
from dacal_med.io.reading import read_header
from dacal_med.preparation.cases import Picture
from dacal_med.preparation.labels import IGNORE, LabelTable
from dacal_med.preparation.reading import read_mask

# Ids and names of SYNTHIA-RAND-CITYSCAPES, and the class of Cityscapes that each becomes. Its images show no terrain,
# truck or train.
SYNTHIA_LABELS: tuple[tuple[int, str, str], ...] = (
    (0, "void", IGNORE),
    (1, "sky", "sky"),
    (2, "building", "building"),
    (3, "road", "road"),
    (4, "sidewalk", "sidewalk"),
    (5, "fence", "fence"),
    (6, "vegetation", "vegetation"),
    (7, "pole", "pole"),
    (8, "car", "car"),
    (9, "traffic sign", "traffic sign"),
    (10, "pedestrian", "person"),
    (11, "bicycle", "bicycle"),
    (12, "motorcycle", "motorcycle"),
    (13, "parking slot", IGNORE),
    (14, "road work", IGNORE),
    (15, "traffic light", "traffic light"),
    (16, "terrain", "terrain"),
    (17, "rider", "rider"),
    (18, "truck", "truck"),
    (19, "bus", "bus"),
    (20, "train", "train"),
    (21, "wall", "wall"),
    (22, "lane marking", IGNORE),
)
SYNTHIA_16 = tuple(name for name in TRAIN_NAMES if name not in ("terrain", "truck", "train"))
SYNTHIA_13 = tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole"))
_LARGEST_ID = STREET_LABELS[-1].id
_GTA5_PLATE = 34  # license plates have an id of their own in GTA5
_PLATE = StreetLabel(_GTA5_PLATE, "license plate", IGNORED, (0, 0, 142))
_EXTRA_COLOURS = {(20, 20, 20): 4}  # "static" in the colours of GTA5, black in those of Cityscapes
_GREY = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")  # of Pillow
_UNKNOWN = 254
_SAMPLE = 8


def street_table(classes: Collection[str] = TRAIN_NAMES, *, plates: bool = False) -> LabelTable:
    """The table from label ids of Cityscapes to train ids.

    Args:
        classes: the classes to keep; all others are ignored.
        plates: whether 34 is the license plate, as in GTA5.
    """
    rows = [(label.id, label.name, *_kept(label.name, classes)) for label in STREET_LABELS]
    if plates:
        rows.append((_PLATE.id, _PLATE.name, IGNORED, IGNORE))
    return LabelTable.of(*rows, first="road")


def synthia_table(classes: Collection[str] = SYNTHIA_16) -> LabelTable:
    """The table from SYNTHIA's ids to train ids of Cityscapes; classes not in ``classes`` are ignored."""
    return LabelTable.of(*((found, name, *_kept(ours, classes)) for found, name, ours in SYNTHIA_LABELS), first="road")


def _kept(name: str, classes: Collection[str]) -> tuple[int, str]:
    return (TRAIN_NAMES.index(name), name) if name in classes and name in TRAIN_NAMES else (IGNORED, IGNORE)


def colour_ids() -> dict[tuple[int, int, int], int]:
    """Label id of every colour; where labels share one, the class that is learnt, or the first."""
    found: dict[tuple[int, int, int], int] = {}
    for label in sorted(STREET_LABELS, key=lambda label: label.train_id == IGNORED):
        found.setdefault(label.colour, label.id)
    return {**found, **_EXTRA_COLOURS}


@cache
def _colour_table() -> np.ndarray[Any, Any]:
    """Label id of every packed colour, ``(2**24,)``."""
    table = np.full(1 << 24, _UNKNOWN, dtype=np.uint8)
    for (red, green, blue), value in colour_ids().items():
        table[red << 16 | green << 8 | blue] = value
    return table


def read_label_ids(path: Path) -> Picture:
    """Read label ids of Cityscapes, ACDC or Dark Zurich.

    Raises:
        InputError: unreadable, colours, or train ids.
    """
    picture = read_mask(path)
    if picture.array.max(initial=0) == IGNORED:
        raise InputError(
            f"{path}: found the value 255, as in train ids; wanted label ids, 0 to {_LARGEST_ID}, as in the owner's "
            "*_labelIds.png."
        )
    return picture


def read_gta_labels(path: Path) -> Picture:
    """Read labels of GTA5 as label ids: the owners' palette files, copies in colours, or ids of 8 or 16 bits.

    Indices of a palette are taken as ids unless the palette gives them colours of other labels; then colours decide.
    Colours do not tell pole groups from poles and license plates from cars.

    Raises:
        InputError: unreadable, a colour that no label has, train ids, or another mode of a picture.
    """
    try:
        with Image.open(path) as file:
            palette = (
                np.asarray(file.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3) if file.mode == "P" else None
            )
            if file.mode in _GREY:
                return read_label_ids(path)
            if file.mode not in ("P", "RGB", "RGBA"):
                raise InputError(
                    f"{path}: found a picture of the mode {file.mode}; wanted label ids in grey of 8 or 16 bits, "
                    "palette indices or RGB colours."
                )
            array = np.asarray(file if file.mode == "P" else file.convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error}); wanted a complete file.") from error
    if palette is None:
        packed = array[..., 0].astype(np.int32) << 16 | array[..., 1].astype(np.int32) << 8 | array[..., 2]
        ids = _colour_table()[packed]
        if ids.max(initial=0) == _UNKNOWN:
            raise _unknown_colours(path, array[ids == _UNKNOWN])
        return Picture(ids)
    used = np.flatnonzero(np.bincount(array.reshape(-1), minlength=256))
    if used.size and used[-1] >= len(palette):
        raise InputError(
            f"{path}: found the index {used[-1]}; wanted indices of its palette of {len(palette)} colours."
        )
    colours = [tuple(int(value) for value in palette[index]) for index in used]
    if all(_is_id(int(index), colour) for index, colour in zip(used, colours, strict=True)):
        return Picture(array)
    table = np.full(256, _UNKNOWN, dtype=np.uint8)
    known = colour_ids()
    for index, (red, green, blue) in zip(used, colours, strict=True):
        table[index] = known.get((red, green, blue), _UNKNOWN)
    ids = table[array]
    if ids.max(initial=0) == _UNKNOWN:
        raise _unknown_colours(path, palette[array[ids == _UNKNOWN]])
    return Picture(ids)


def _is_id(index: int, colour: tuple[int, ...]) -> bool:
    """Whether an index of a palette may be a label id: a learnt class in its colour, or void in no learnt colour."""
    own = {label.id: label for label in STREET_LABELS}.get(index, _PLATE)
    if colour == own.colour:
        return index <= _GTA5_PLATE
    learnt = [label.colour for label in STREET_LABELS if label.train_id != IGNORED]
    return index <= _GTA5_PLATE and own.train_id == IGNORED and colour not in learnt


def _unknown_colours(path: Path, found: np.ndarray[Any, Any]) -> InputError:
    colours = [tuple(int(value) for value in colour) for colour in np.unique(found, axis=0)[:6]]
    return InputError(
        f"{path}: found the colour(s) {', '.join(map(str, colours))} in {len(found)} pixel(s); wanted only colours of "
        "Cityscapes' labels, such as (128, 64, 128) for road."
    )


def read_synthia_labels(path: Path) -> Picture:
    """Read the class ids from a label of SYNTHIA: a 16-bit PNG, class in the first channel, instance in the second.

    Pillow keeps 8 of the 16 bits, by itself the upper ones, which hold no class; asked for the lower ones, it gives
    all that is there.

    Raises:
        InputError: the file is unreadable, not of 16 bits, or of one channel.
    """
    low, high = (_synthia_channel(path, part) for part in ("low", "high"))
    return Picture(low.astype(np.uint16) | high.astype(np.uint16) << 8)


def _synthia_channel(path: Path, part: Literal["low", "high"]) -> np.ndarray[Any, Any]:
    """Read the lower or upper 8 bits of the first channel."""
    try:
        with Image.open(path) as file:
            codec, extents, offset, stored = file.tile[0]
            if stored == "RGB;16B":
                raw = "RGB;16L" if part == "low" else "RGB;16B"
            elif stored == "LA;16B":
                raw = "RGBA"  # four bytes a pixel, the two of the class first
            else:
                bits = "16-bit grey" if str(stored).startswith("I;16") else f"{file.mode} of at most 8 bits"
                raise InputError(
                    f"{path}: found {bits}; wanted the owner's 16-bit labels of GT/LABELS with 2 or 3 channels, "
                    "neither colours nor files that were saved again, which hold no classes."
                )
            file.tile = [type(file.tile[0])(codec, extents, offset, raw)]
            array = np.asarray(file)
    except (OSError, SyntaxError, IndexError, UnidentifiedImageError) as error:
        raise InputError(f"{path}: cannot be read as a PNG ({error}); wanted a complete file.") from error
    return array[..., 1 if raw == "RGBA" and part == "low" else 0]


def check_sample(
    pairs: Sequence[tuple[Path, Path]], read: Callable[[Path], Picture], table: LabelTable, what: str
) -> None:
    """Read a few labels of a data set before anything is written.

    Args:
        pairs: image and label of every case.
        read: reads the owner's values.
        table: that they must be in.
        what: the data set, for the message.

    Raises:
        InputError: a label is unreadable, holds a value that is not in the table, or has another size than its image;
            or all labels look like train ids where label ids are wanted.
    """
    step = max(1, len(pairs) // _SAMPLE)
    largest = 0
    for image, label in pairs[::step][:_SAMPLE]:
        array = read(label).array
        table.remap(array, label)
        size = read_header(image).shape[::-1]
        if array.shape != size:
            raise InputError(f"{label}: found size {array.shape}; wanted {size}, that of {image}.")
        largest = max(largest, int(array.max(initial=0)))
    of_cityscapes = max(row.low for row in table.rows if row.value != IGNORED) == _LARGEST_ID
    if pairs and of_cityscapes and largest < len(TRAIN_NAMES):
        raise InputError(
            f"{pairs[0][1].parent}: found no label value above {largest} in {min(len(pairs), _SAMPLE)} file(s) of "
            f"{what}, as in train ids; wanted the owner's label ids, up to {_LARGEST_ID}."
        )
