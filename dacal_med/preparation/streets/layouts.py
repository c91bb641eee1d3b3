# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Rendered streets in the folders and files of GTA5, SYNTHIA, Cityscapes, ACDC and Dark Zurich."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from dacal_med.data.street_labels import IGNORED, STREET_LABELS
from dacal_med.preparation.sets.street_owners import CONDITIONS, Split
from dacal_med.preparation.sets.street_tables import SYNTHIA_LABELS
from dacal_med.preparation.streets import looks
from dacal_med.preparation.streets.canvas import Array, Canvas
from dacal_med.preparation.streets.scene import Style, draw_street, labels_of, marking_of

STEP = 2  # streets are drawn that many times finer than the images, so that edges are smooth
_CITIES: dict[Split, tuple[str, ...]] = {"train": ("aachen", "bremen", "ulm"), "val": ("frankfurt", "lindau")}
_RENDERED = Style(camera_height=(1.4, 1.9), view=(52.0, 62.0), crowd=1.0)
_SYNTHIA = Style(
    camera_height=(1.4, 2.6), view=(56.0, 72.0), horizon=(0.36, 0.48), without=frozenset({"terrain", "truck", "train"}),
    crowd=1.5,
)  # fmt: skip
_DRIVEN = Style(hood=True)
_FIRST: dict[Split, int] = {"train": 0, "val": 500_000}  # so that no street is in two parts
_LANE_MARKING = next(value for value, name, _ in SYNTHIA_LABELS if name == "lane marking")
_LOOKS = dict(zip(CONDITIONS, (looks.FOG, looks.NIGHT, looks.RAIN, looks.SNOW), strict=True))


@dataclass(frozen=True)
class Renderer:
    """Draws the streets of one domain.

    Attributes:
        root: folder of the data set.
        size: rows and columns of the images.
        seed: of all its streets.
        domain: 0 for the source, 1 for the target.
    """

    root: Path
    size: tuple[int, int]
    seed: int
    domain: int

    def draw(self, index: int, style: Style) -> tuple[Canvas, np.random.Generator]:
        """Draw a street; the generator goes on to photograph it."""
        rng = np.random.default_rng([self.seed, self.domain, index])
        return draw_street((self.size[0] * STEP, self.size[1] * STEP), style, rng), rng

    def save(self, name: str, array: Array, palette: list[int] | None = None) -> None:
        """Write a PNG file."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(array)
        if palette is not None:
            picture.putpalette(palette)
        picture.save(path)


def write_gta5(renderer: Renderer, count: int) -> None:
    """Write GTA5: label ids with a palette."""
    palette = [channel for label in STREET_LABELS for channel in label.colour]
    for number in range(1, count + 1):
        canvas, rng = renderer.draw(number, _RENDERED)
        renderer.save(f"images/{number:05d}.png", looks.photograph(canvas, looks.GTA5, STEP, rng))
        renderer.save(f"labels/{number:05d}.png", labels_of(canvas, STEP), palette)


def write_synthia(renderer: Renderer, count: int) -> None:
    """Write SYNTHIA-RAND-CITYSCAPES: labels of 16 bits, the class in the first of three channels."""
    ids = {ours: value for value, _, ours in SYNTHIA_LABELS if ours != "ignore"}
    table = np.zeros(IGNORED + 1, np.uint16)
    for label in STREET_LABELS:
        table[label.id] = ids.get(label.name, 0)
    for number in range(count):
        canvas, rng = renderer.draw(number, _SYNTHIA)
        image = looks.photograph(canvas, looks.SYNTHIA, STEP, rng)
        renderer.save(f"RAND_CITYSCAPES/RGB/{number:07d}.png", image)
        classes = np.where(marking_of(canvas, STEP), np.uint16(_LANE_MARKING), table[labels_of(canvas, STEP)])
        path = renderer.root / "RAND_CITYSCAPES" / "GT" / "LABELS" / f"{number:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        channels = np.stack([classes, np.zeros_like(classes), np.zeros_like(classes)], axis=-1)
        path.write_bytes(png_of_16_bits(channels))


def png_of_16_bits(array: Array) -> bytes:
    """Encode ``(rows, columns, 3)`` uint16 as a PNG file, which Pillow cannot."""
    rows, columns = array.shape[:2]

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    lines = array.astype(">u2").view(np.uint8).reshape(rows, -1)
    unfiltered = np.pad(lines, ((0, 0), (1, 0))).tobytes()  # each line starts with the number of its filter, 0 for none
    header = struct.pack(">IIBBBBB", columns, rows, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(unfiltered)) + chunk(b"IEND", b"")
    )


def write_cityscapes(renderer: Renderer, split: Split, count: int, *, labelled: bool) -> None:
    """Write a part of Cityscapes."""
    for index in range(count):
        canvas, rng = renderer.draw(index + _FIRST[split], _DRIVEN)
        city = _CITIES[split][index % len(_CITIES[split])]
        stem = f"{split}/{city}/{city}_{index:06d}_000019"
        renderer.save(f"leftImg8bit/{stem}_leftImg8bit.png", looks.photograph(canvas, looks.CITYSCAPES, STEP, rng))
        if labelled:
            renderer.save(f"gtFine/{stem}_gtFine_labelIds.png", labels_of(canvas, STEP))


def write_acdc(renderer: Renderer, split: Split, count: int, *, labelled: bool) -> None:
    """Write a part of ACDC, the conditions in turn, with the same places by day as reference frames."""
    for index in range(count):
        canvas, rng = renderer.draw(index + _FIRST[split], _DRIVEN)
        condition = CONDITIONS[index % len(CONDITIONS)]
        recording = f"GOPR{475 + index % len(CONDITIONS):04d}"
        stem = f"{recording}/{recording}_frame_{index + _FIRST[split]:06d}"
        place = f"{condition}/{split}"
        renderer.save(f"rgb_anon/{place}/{stem}_rgb_anon.png", looks.photograph(canvas, _LOOKS[condition], STEP, rng))
        day = looks.photograph(canvas, replace(looks.CITYSCAPES, tint=(1.0, 0.98, 0.96)), STEP, rng)
        renderer.save(f"rgb_anon/{place}_ref/{stem}_rgb_ref_anon.png", day)
        if labelled:
            renderer.save(f"gt/{place}/{stem}_gt_labelIds.png", labels_of(canvas, STEP))


def write_dark_zurich(renderer: Renderer, split: Split, count: int, *, labelled: bool) -> None:
    """Write the nights of a part of Dark Zurich."""
    for index in range(count):
        canvas, rng = renderer.draw(index + _FIRST[split], _DRIVEN)
        recording = "GOPR0351" if split == "train" else "GOPR0356"
        stem = f"{split}/night/{recording}/{recording}_frame_{index + _FIRST[split]:06d}"
        renderer.save(f"rgb_anon/{stem}_rgb_anon.png", looks.photograph(canvas, looks.DARK_ZURICH, STEP, rng))
        if labelled:
            renderer.save(f"gt/{stem}_gt_labelIds.png", labels_of(canvas, STEP))


def _cityscapes_train(renderer: Renderer, count: int) -> None:
    write_cityscapes(renderer, "train", count, labelled=True)


WriteTarget = Callable[..., None]
# Of each task: folder and writer of the source, folder and writer of the target.
TASKS: dict[str, tuple[tuple[str, Callable[[Renderer, int], None]], tuple[str, WriteTarget]]] = {
    "gta2cityscapes": (("gta5", write_gta5), ("cityscapes", write_cityscapes)),
    "synthia2cityscapes": (("synthia", write_synthia), ("cityscapes", write_cityscapes)),
    "cityscapes2acdc": (("cityscapes", _cityscapes_train), ("acdc", write_acdc)),
    "cityscapes2darkzurich": (("cityscapes", _cityscapes_train), ("dark_zurich", write_dark_zurich)),
}
