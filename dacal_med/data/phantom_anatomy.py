# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Random abdomens made of deformed super-ellipsoids.

Each structure is an implicit shape, inside where its function is below zero, with a random pose, size and exponent, and
a smooth bumpy surface; one smooth random displacement field bends the whole. Structures are painted in an order of
priority, so every voxel has exactly one tissue. The idea follows the digital phantoms XCAT (Segars et al., Med Phys 37
(2010) 4902) and Shepp-Logan (1974), reduced to what a segmentation network needs to find: organs with stable neighbours
and changing shapes. Coordinates are patient millimetres: x to the right, y to the front, z to the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation

LABELS = {0: "background", 1: "liver", 2: "spleen", 3: "left kidney", 4: "right kidney"}


class Tissue(IntEnum):
    """What a voxel is made of; the renderings give each its brightness."""

    AIR = 0
    FAT = 1
    MUSCLE = 2
    LUNG = 3
    BONE = 4
    MARROW = 5
    VESSEL = 6
    BOWEL = 7
    GAS = 8
    STOMACH = 9
    LIVER = 10
    SPLEEN = 11
    LEFT_CORTEX = 12
    LEFT_MEDULLA = 13
    RIGHT_CORTEX = 14
    RIGHT_MEDULLA = 15


_LABEL_OF_TISSUE = {
    Tissue.LIVER: 1,
    Tissue.SPLEEN: 2,
    Tissue.LEFT_CORTEX: 3,
    Tissue.LEFT_MEDULLA: 3,
    Tissue.RIGHT_CORTEX: 4,
    Tissue.RIGHT_MEDULLA: 4,
}


@dataclass(frozen=True)
class Ellipsoid:
    """A super-ellipsoid before its random changes: centre and half axes in mm, and how freely its pose varies."""

    centre: tuple[float, float, float]
    half_axes: tuple[float, float, float]
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift_sd: float = 5.0
    scale_sd: float = 0.08
    turn_sd: float = 6.0
    bumps: float = 0.12


_LIVER = (
    Ellipsoid((66, 6, 24), (66, 74, 62), (0, 0, -12), scale_sd=0.09),
    Ellipsoid((-2, 38, 42), (58, 34, 32), (0, 12, 0), shift_sd=7, scale_sd=0.14, turn_sd=9),
)
_SPLEEN = Ellipsoid((-96, -34, 34), (24, 44, 46), (0, -14, 22), shift_sd=7, scale_sd=0.13, turn_sd=10)
_LEFT_KIDNEY = Ellipsoid((-58, -46, -22), (25, 26, 50), (8, -10, 20), shift_sd=7, scale_sd=0.09, turn_sd=8)
_RIGHT_KIDNEY = Ellipsoid((60, -46, -40), (25, 26, 49), (8, 10, -20), shift_sd=7, scale_sd=0.09, turn_sd=8)
_STOMACH = Ellipsoid((-58, 26, 34), (40, 42, 44), (0, 20, -15), shift_sd=8, scale_sd=0.15, turn_sd=12)
_AORTA = Ellipsoid((-12, -26, 0), (10.5, 10.5, 400), shift_sd=3, scale_sd=0.1, turn_sd=2, bumps=0.03)
_VENA_CAVA = Ellipsoid((20, -22, 0), (12.5, 10.5, 400), shift_sd=3, scale_sd=0.1, turn_sd=2, bumps=0.03)
_SPINE = Ellipsoid((0, -58, 0), (22, 19, 400), shift_sd=2, scale_sd=0.06, turn_sd=2, bumps=0.08)


def smooth_noise(shape: tuple[int, ...], knots: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Smooth noise of about unit size: a coarse random grid brought to ``shape`` by cubic splines, float32."""
    field = rng.standard_normal(knots).astype(np.float32)
    for axis, (size, count) in enumerate(zip(shape, knots, strict=True)):
        field = np.moveaxis(np.tensordot(_spline_matrix(size, count), field, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(field)


@lru_cache(maxsize=64)
def _spline_matrix(size: int, knots: int) -> np.ndarray:
    """Cubic interpolation from ``knots`` to ``size`` points; axis by axis is 20 times faster than one 3D zoom."""
    matrix = zoom(np.eye(knots), (size / knots, 1), order=3, mode="reflect", grid_mode=True)
    return np.asarray(matrix, dtype=np.float32)


class Abdomen:
    """One random anatomy, sampled on a grid of points.

    Args:
        points: patient coordinates in mm of every voxel, ``(3, *spatial)``.
        rng: the only source of randomness.

    Attributes:
        tissue: a :class:`Tissue` per voxel, uint8 ``(*spatial)``.
        labels: the label per voxel, uint8 ``(*spatial)``.
    """

    def __init__(self, points: np.ndarray, rng: np.random.Generator) -> None:
        self._rng = rng
        shape = points.shape[1:]
        self._shape: tuple[int, ...] = tuple(shape)
        self._size = float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.12))
        self._stretch = np.clip(rng.normal(1.0, 0.04, 3), 0.9, 1.1)
        bend = np.stack([smooth_noise(self._shape, (5, 4, 4), rng) for _ in range(3)]) * 5.0
        offset = rng.normal(0.0, 4.0, (3, 1, 1, 1))
        scale = (self._size * self._stretch).reshape(3, 1, 1, 1)
        self._points = ((points + bend + offset) / scale).astype(np.float32)
        self.tissue = np.full(shape, Tissue.AIR, dtype=np.uint8)
        self._paint()
        lookup = np.zeros(len(Tissue), dtype=np.uint8)
        for tissue, label in _LABEL_OF_TISSUE.items():
            lookup[tissue] = label
        self.labels = lookup[self.tissue]

    def _implicit(self, shape: Ellipsoid) -> np.ndarray:
        """Below zero inside, zero on the surface, in units of the half axes."""
        rng = self._rng
        centre = np.asarray(shape.centre) + rng.normal(0.0, shape.shift_sd, 3)
        half = np.asarray(shape.half_axes) * np.exp(rng.normal(0.0, shape.scale_sd, 3))
        turn = Rotation.from_euler("xyz", np.asarray(shape.turn) + rng.normal(0.0, shape.turn_sd, 3), degrees=True)
        exponent = rng.uniform(2.0, 2.6)
        to_local = (turn.as_matrix().T / half[:, None]).astype(np.float32)
        relative = self._points - centre.astype(np.float32).reshape(3, 1, 1, 1)
        local = np.abs(np.tensordot(to_local, relative, axes=1))
        radius = (local**exponent).sum(axis=0) ** (1.0 / exponent)
        bumps = shape.bumps * smooth_noise(self._shape, (7, 6, 5), rng) if shape.bumps else 0.0
        return np.asarray(radius - 1.0 + bumps, dtype=np.float32)

    def _fill(self, where: np.ndarray, tissue: Tissue) -> None:
        self.tissue[where] = tissue

    def _paint(self) -> None:
        """Paint from what lies outermost or gives way, to what keeps its place."""
        rng = self._rng
        x, y, z = self._points
        wide, deep = 152 * rng.normal(1.0, 0.03), 104 * rng.normal(1.0, 0.03)
        exponent = rng.uniform(2.1, 2.6)
        body = (np.abs(x / wide) ** exponent + np.abs(y / deep) ** exponent) ** (1 / exponent)
        fat = rng.uniform(0.07, 0.15)  # of the body's radius
        wall = 1.0 - fat
        inner = wall - rng.uniform(0.07, 0.1)
        self._fill(body < 1.0, Tissue.FAT)
        self._fill(body < wall, Tissue.MUSCLE)
        cavity = body < inner
        self._fill(cavity, Tissue.FAT)

        # The diaphragm: two domes, lung above.
        dome = 84 + rng.normal(0, 5) - ((np.abs(x) - 62) / 9.5) ** 2 - ((y - 4) / 9.0) ** 2
        chest = z > dome
        self._fill(cavity & ~chest & ((np.abs(x) - 36) ** 2 + (y + 66) ** 2 < 24**2), Tissue.MUSCLE)
        self._bowel(cavity & ~chest)
        stomach = self._implicit(_STOMACH)
        inside = (stomach < 0) & cavity & ~chest
        self._fill(inside, Tissue.STOMACH)
        top = float(np.max(y[inside])) if inside.any() else 0.0
        self._fill(inside & (stomach < -0.12) & (y > top - rng.uniform(14, 30)), Tissue.GAS)

        liver = np.minimum(*(self._implicit(part) for part in _LIVER))
        self._fill((liver < 0) & cavity & ~chest, Tissue.LIVER)
        # Vessels inside the liver belong to it, as annotators draw it.
        self._fill((self._implicit(_SPLEEN) < 0) & cavity & ~chest, Tissue.SPLEEN)
        self._kidney(_LEFT_KIDNEY, cavity & ~chest, Tissue.LEFT_CORTEX, Tissue.LEFT_MEDULLA)
        self._kidney(_RIGHT_KIDNEY, cavity & ~chest, Tissue.RIGHT_CORTEX, Tissue.RIGHT_MEDULLA)
        self._fill(cavity & chest, Tissue.LUNG)
        self._fill((self._implicit(_VENA_CAVA) < 0) & cavity, Tissue.VESSEL)
        self._fill((self._implicit(_AORTA) < 0) & cavity, Tissue.VESSEL)
        self._bones(body, inner, wall)

    def _bowel(self, where: np.ndarray) -> None:
        """Loops in the lower front: a band of smooth noise, with gas where another noise is high."""
        _, y, z = self._points
        loops = smooth_noise(self._shape, (13, 10, 9), self._rng)
        gas = smooth_noise(self._shape, (11, 9, 8), self._rng)
        region = where & (y > -20 + z * 0.2) & (z < 30)
        self._fill(region & (np.abs(loops) < 0.45), Tissue.BOWEL)
        self._fill(region & (np.abs(loops) < 0.3) & (gas > 0.9) & (y > 0), Tissue.GAS)

    def _kidney(self, shape: Ellipsoid, where: np.ndarray, cortex: Tissue, medulla: Tissue) -> None:
        surface = self._implicit(shape)
        self._fill(where & (surface < 0), cortex)
        self._fill(where & (surface < -0.42), medulla)

    def _bones(self, body: np.ndarray, inner: float, wall: float) -> None:
        x, y, z = self._points
        spine = self._implicit(_SPINE)
        period = self._rng.uniform(30, 36)
        disc = np.abs(((z + self._rng.uniform(0, period)) % period) - period / 2) < 4
        self._fill(spine < 0, Tissue.BONE)
        self._fill((spine < -0.25) & ~disc, Tissue.MARROW)
        self._fill((spine < 0) & disc, Tissue.MUSCLE)
        arch = (np.abs(np.abs(x) - 16) < 6) & (np.abs(y + 82) < 9) & (body < wall)
        self._fill(arch, Tissue.BONE)
        # Ribs run down and forward inside the wall of the upper part.
        height = z + 0.45 * y + 0.08 * np.abs(x)
        spacing = self._rng.uniform(26, 31)
        rib = np.abs(((height + self._rng.uniform(0, spacing)) % spacing) - spacing / 2) < 4.5
        middle = 0.5 * (inner + wall)
        self._fill(rib & (np.abs(body - middle) < 0.032) & (z > -25) & (y < 75), Tissue.BONE)
