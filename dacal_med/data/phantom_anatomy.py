# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Random abdomens made of deformed super-ellipsoids, every voxel of exactly one tissue."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from dacal_med.data.phantom_shapes import Anatomy, Ellipsoid, smooth_noise

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


_LABEL_OF_TISSUE: dict[int, int] = {
    Tissue.LIVER: 1,
    Tissue.SPLEEN: 2,
    Tissue.LEFT_CORTEX: 3,
    Tissue.LEFT_MEDULLA: 3,
    Tissue.RIGHT_CORTEX: 4,
    Tissue.RIGHT_MEDULLA: 4,
}


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


class Abdomen(Anatomy):
    """One random abdomen; ``tissue`` holds :class:`Tissue`."""

    LABEL_OF_TISSUE = _LABEL_OF_TISSUE

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
