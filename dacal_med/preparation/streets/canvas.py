# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a street is painted on: a pinhole camera, and colour, light, label and depth of every pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dacal_med.data.street_labels import STREET_LABELS

Array = np.ndarray[Any, Any]
Colour = tuple[float, float, float]
# From metres right of an object's middle and above the ground to where it is.
Shape = Callable[[Array, Array], Array]
IDS = {label.name: label.id for label in STREET_LABELS}
FAR = 1e4  # metres; the sky


@dataclass(frozen=True)
class Camera:
    """A pinhole camera above a straight street.

    Attributes:
        rows: of the canvas.
        columns: of the canvas.
        focal: in pixels.
        horizon: row of the horizon.
        middle: column of the street's vanishing point.
        height: above the ground, metres.
        side: right of the middle of the street, metres.
    """

    rows: int
    columns: int
    focal: float
    horizon: float
    middle: float
    height: float
    side: float

    def rays(self) -> tuple[Array, Array]:
        """Slopes of every pixel's ray: right ``(1, columns)`` and down ``(rows, 1)``, per metre of depth."""
        right = (np.arange(self.columns, dtype=np.float32) + 0.5 - self.middle) / self.focal
        down = (np.arange(self.rows, dtype=np.float32) + 0.5 - self.horizon) / self.focal
        return right[None], down[:, None]


class Canvas:
    """Painted from far to near.

    Args:
        camera: through which the street is seen.

    Attributes:
        colour: share of light thrown back, RGB ``(rows, columns, 3)``.
        glow: light of its own, RGB, seen in the dark.
        labels: label ids of Cityscapes ``(rows, columns)``.
        marking: whether it is paint on the road.
        depth: metres ``(rows, columns)``.
    """

    def __init__(self, camera: Camera) -> None:
        size = (camera.rows, camera.columns)
        self.camera = camera
        self.colour = np.zeros((*size, 3), np.float32)
        self.glow = np.zeros((*size, 3), np.float32)
        self.labels = np.full(size, IDS["sky"], np.uint8)
        self.marking = np.zeros(size, bool)
        self.depth = np.full(size, FAR, np.float32)

    def fill(self, part: tuple[slice, slice], mask: Array, name: str, colour: Array, depth: Array) -> None:
        """Paint pixels of a part of the picture.

        Args:
            part: rows and columns.
            mask: which of their pixels.
            name: the class.
            colour: RGB; of one pixel or of every pixel of the part.
            depth: metres; of every pixel of the part, or of every column.
        """
        self.colour[part][mask] = np.broadcast_to(colour, (*mask.shape, 3))[mask]
        self.depth[part][mask] = np.broadcast_to(depth, mask.shape)[mask]
        self.labels[part][mask] = IDS[name]
        self.glow[part][mask] = 0.0
        self.marking[part][mask] = False

    def stand(
        self,
        place: tuple[float, float],
        box: tuple[float, float, float, float],
        shape: Shape,
        name: str | None,
        colour: Colour,
        *,
        glow: float = 0.0,
        shade: float = 0.0,
    ) -> None:
        """Paint a flat thing that stands upright on the ground and faces the camera.

        Args:
            place: metres right of the middle of the street, and ahead.
            box: left, right, lower and upper end of the thing in metres, from its foot.
            shape: where in the box it is.
            name: its class; None to change colours alone, as paint and shadows do.
            colour: RGB.
            glow: light of its own in the dark.
            shade: how much darker it gets towards its left and right ends.
        """
        camera = self.camera
        scale = camera.focal / place[1]
        column = camera.middle + (place[0] - camera.side) * scale
        row = camera.horizon + camera.height * scale
        left, right = (round(np.clip(column + end * scale, 0, camera.columns)) for end in box[:2])
        lower, upper = (round(np.clip(row - end * scale, 0, camera.rows)) for end in box[2:])
        if right <= left or lower <= upper:
            return
        across = (np.arange(left, right, dtype=np.float32)[None] + 0.5 - column) / scale
        above = (row - np.arange(upper, lower, dtype=np.float32)[:, None] - 0.5) / scale
        mask = np.broadcast_to(shape(across, above), (lower - upper, right - left))
        part = np.s_[upper:lower, left:right]
        width = max(abs(box[0]), abs(box[1]))
        light = 1.0 - shade * np.broadcast_to((across / width) ** 2, mask.shape)[mask][:, None]
        self.colour[part][mask] = np.asarray(colour, np.float32) * light
        self.glow[part][mask] = np.asarray(colour, np.float32) * glow
        if name is not None:
            self.labels[part][mask] = IDS[name]
            self.depth[part][mask] = place[1]
            self.marking[part][mask] = False


def rectangle(left: float, right: float, lower: float, upper: float) -> Shape:
    """A rectangle, metres."""
    return lambda x, y: (x >= left) & (x <= right) & (y >= lower) & (y <= upper)


def ellipse(x0: float, y0: float, half_width: float, half_height: float) -> Shape:
    """An ellipse, metres."""
    return lambda x, y: ((x - x0) / half_width) ** 2 + ((y - y0) / half_height) ** 2 <= 1.0


def ring(x0: float, y0: float, radius: float, width: float) -> Shape:
    """A circle's line, metres."""
    return lambda x, y: np.abs(np.hypot(x - x0, y - y0) - radius) <= width / 2


def trapezium(half_lower: float, half_upper: float, lower: float, upper: float) -> Shape:
    """A symmetric trapezium, metres."""

    def inside(x: Array, y: Array) -> Array:
        share = (y - lower) / (upper - lower)
        return (share >= 0) & (share <= 1) & (np.abs(x) <= half_lower + share * (half_upper - half_lower))

    return inside


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Shape:
    """A line between two points, metres."""

    def inside(x: Array, y: Array) -> Array:
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length, 0.0, 1.0)
        return np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0)) <= width / 2

    return inside


def union(*shapes: Shape) -> Shape:
    """Where any of the shapes is."""

    def inside(x: Array, y: Array) -> Array:
        found = shapes[0](x, y)
        for shape in shapes[1:]:
            found = found | shape(x, y)
        return found

    return inside
