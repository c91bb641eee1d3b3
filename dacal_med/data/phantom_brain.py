# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A random brain with a glioma, as T2-weighted MR and as T1-weighted MR with contrast agent.

Skull-stripped on a common grid, as BraTS is. In T2 fluid and oedema are bright and white matter is dark; in T1 that is
the other way round, and only the rim that takes up the agent is bright: the contrasts change their order.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy.ndimage import gaussian_filter

from dacal_med.data.phantom_shapes import Anatomy, Drawn, Ellipsoid, bias_field, grid_points, rician, smooth_noise

LABELS = {0: "background", 1: "tumour core, not enhancing", 2: "oedema", 3: "enhancing tumour"}


class Tissue(IntEnum):
    """What a voxel is made of."""

    OUTSIDE = 0
    FLUID = 1
    GREY = 2
    WHITE = 3
    DEEP_GREY = 4
    OEDEMA = 5
    CORE = 6
    ENHANCING = 7


# Mean and standard deviation over cases, as shares of the brightest signal: T2, T1 with contrast agent.
_MAGNITUDE: tuple[dict[Tissue, tuple[float, float]], ...] = (
    {
        Tissue.OUTSIDE: (0.0, 0.0),
        Tissue.FLUID: (0.96, 0.03),
        Tissue.GREY: (0.52, 0.03),
        Tissue.WHITE: (0.38, 0.03),
        Tissue.DEEP_GREY: (0.44, 0.03),
        Tissue.OEDEMA: (0.74, 0.05),
        Tissue.CORE: (0.88, 0.06),
        Tissue.ENHANCING: (0.58, 0.05),
    },
    {
        Tissue.OUTSIDE: (0.0, 0.0),
        Tissue.FLUID: (0.14, 0.03),
        Tissue.GREY: (0.42, 0.03),
        Tissue.WHITE: (0.56, 0.03),
        Tissue.DEEP_GREY: (0.48, 0.03),
        Tissue.OEDEMA: (0.36, 0.03),
        Tissue.CORE: (0.22, 0.04),
        Tissue.ENHANCING: (0.92, 0.05),
    },
)
_BRAIN = Ellipsoid((0, 0, 0), (66, 80, 58), shift_sd=2, scale_sd=0.04, turn_sd=3, bumps=0.04)
_VENTRICLES = (
    Ellipsoid((12, -4, 6), (7, 32, 11), (0, 0, -8), shift_sd=1.5, scale_sd=0.2),
    Ellipsoid((-12, -4, 6), (7, 32, 11), (0, 0, 8), shift_sd=1.5, scale_sd=0.2),
)
_DEEP = (
    Ellipsoid((25, 4, 0), (9, 20, 13), shift_sd=1.5),
    Ellipsoid((-25, 4, 0), (9, 20, 13), shift_sd=1.5),
)


class Brain(Anatomy):
    """One random brain with one tumour; ``tissue`` holds :class:`Tissue`."""

    BEND_MM = 2.0
    LABEL_OF_TISSUE = {Tissue.CORE: 1, Tissue.OEDEMA: 2, Tissue.ENHANCING: 3}  # noqa: RUF012

    def _paint(self) -> None:
        """Paint from the cortex inwards, the tumour last."""
        depth = -self._implicit(_BRAIN)
        folds = smooth_noise(self._shape, (19, 21, 17), self._rng)
        self._fill(depth > 0, Tissue.FLUID)
        self._fill((depth > 0.03) & ~((depth < 0.16) & (folds > 1.1)), Tissue.GREY)
        self._fill(depth > 0.14 + 0.06 * folds, Tissue.WHITE)
        for part in _DEEP:
            self._fill(self._implicit(part) < 0, Tissue.DEEP_GREY)
        for part in _VENTRICLES:
            self._fill(self._implicit(part) < 0, Tissue.FLUID)
        self._tumour(depth)

    def _tumour(self, depth: np.ndarray) -> None:
        """A core with a rim that takes up contrast agent, in an oedema that follows the white matter."""
        rng = self._rng
        side = rng.choice([-1.0, 1.0])
        centre = (side * rng.uniform(18, 40), rng.uniform(-42, 42), rng.uniform(-16, 26))
        radius = rng.uniform(11, 19)
        axes = tuple(radius * rng.uniform(0.85, 1.2, 3))
        core = self._implicit(Ellipsoid(centre, axes, shift_sd=0, scale_sd=0.05, turn_sd=30, bumps=0.16))
        wide = tuple(radius * rng.uniform(1.5, 2.2, 3))
        oedema = self._implicit(Ellipsoid(centre, wide, shift_sd=4, scale_sd=0.1, turn_sd=30, bumps=0.28))
        inside = depth > 0.05
        self._fill((oedema < 0) & inside & np.isin(self.tissue, [Tissue.WHITE, Tissue.DEEP_GREY]), Tissue.OEDEMA)
        self._fill((core < 0) & inside, Tissue.ENHANCING)
        self._fill((core < -rng.uniform(0.25, 0.4)) & inside, Tissue.CORE)


def draw(domain: int, size: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> Drawn:
    """Draw a brain and render it in one of the two contrasts.

    Args:
        domain: 0 for T2, 1 for T1 with contrast agent.
        size: voxels along right-left, front-back and foot-head.
        spacing: voxel size in mm along each, the same for all cases, which lie on one template.
        rng: the only source of randomness.

    Returns:
        Image in arbitrary units (float32, exactly 0 outside the brain), labels and affine.
    """
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    anatomy = Brain(grid_points(affine, size), rng)
    table = _MAGNITUDE[domain]
    values = np.asarray([rng.normal(*table[kind]) for kind in Tissue], dtype=np.float32)
    texture = 1.0 + 0.05 * smooth_noise(size, tuple(n // 3 for n in size), rng)
    image = np.clip(values, 0.0, 1.0)[anatomy.tissue] * texture
    blurred = gaussian_filter(image, 0.6, mode="nearest", truncate=3.0) * bias_field(size, 0.05, 0.15, rng)
    magnitude = rician(blurred, rng.uniform(0.015, 0.03), rng) * (anatomy.tissue != Tissue.OUTSIDE)
    return Drawn(np.asarray(magnitude * rng.uniform(500, 900), dtype=np.float32), anatomy.labels, affine)
