# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A random prostate between bladder and rectum, as T2-weighted MR of two sites.

The first site has a surface coil: weak bias field, little noise. The second has an endorectal coil, whose signal falls
off from the rectum to the front, thinner slices, a flatter contrast and more noise: the difference between sites of the
multi-site set of Liu et al. (SAML, MICCAI 2020, arXiv 2007.02035).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy.ndimage import gaussian_filter

from dacal_med.data.phantom_shapes import (
    Anatomy,
    Drawn,
    Ellipsoid,
    bias_field,
    grid_points,
    placed,
    rician,
    smooth_noise,
)

LABELS = {0: "background", 1: "prostate"}


class Tissue(IntEnum):
    """What a voxel is made of."""

    FAT = 0
    MUSCLE = 1
    BONE = 2
    BLADDER = 3
    BLADDER_WALL = 4
    RECTUM_WALL = 5
    RECTUM = 6
    PERIPHERAL = 7
    TRANSITION = 8
    NODULE = 9
    CAPSULE = 10


# Mean and standard deviation over cases, as shares of the brightest signal.
_MAGNITUDE: dict[Tissue, tuple[float, float]] = {
    Tissue.FAT: (0.54, 0.05),
    Tissue.MUSCLE: (0.18, 0.02),
    Tissue.BONE: (0.36, 0.05),
    Tissue.BLADDER: (0.95, 0.04),
    Tissue.BLADDER_WALL: (0.24, 0.03),
    Tissue.RECTUM_WALL: (0.28, 0.03),
    Tissue.RECTUM: (0.06, 0.02),
    Tissue.PERIPHERAL: (0.74, 0.06),
    Tissue.TRANSITION: (0.38, 0.05),
    Tissue.NODULE: (0.55, 0.06),
    Tissue.CAPSULE: (0.26, 0.03),
}
_PROSTATE = Ellipsoid((0, 0, 0), (25, 20, 23), shift_sd=3, scale_sd=0.1, turn_sd=5, bumps=0.06)
_TRANSITION = Ellipsoid((0, 4, 4), (17, 13, 16), shift_sd=1.5, scale_sd=0.15, turn_sd=5, bumps=0.12)
_BLADDER = Ellipsoid((0, 10, 44), (38, 28, 26), shift_sd=4, scale_sd=0.15, turn_sd=6, bumps=0.05)
_RECTUM = Ellipsoid((0, -34, 0), (15, 12, 300), (4, 0, 0), shift_sd=3, scale_sd=0.15, turn_sd=3, bumps=0.12)
_PUBIS = (
    Ellipsoid((18, 42, -6), (15, 9, 18), (0, 0, 20), shift_sd=2),
    Ellipsoid((-18, 42, -6), (15, 9, 18), (0, 0, -20), shift_sd=2),
)


class Pelvis(Anatomy):
    """One random pelvis around the prostate; ``tissue`` holds :class:`Tissue`."""

    BEND_MM = 2.0
    LABEL_OF_TISSUE = {Tissue.PERIPHERAL: 1, Tissue.TRANSITION: 1, Tissue.NODULE: 1}  # noqa: RUF012

    def _paint(self) -> None:
        """Paint muscles and bones, then what lies between them, the prostate last."""
        x, y, z = self._points
        self._fill(np.abs(x) > 33 + 0.004 * (y + 10) ** 2 - 0.06 * z, Tissue.MUSCLE)
        self._fill(np.abs(x) > 50, Tissue.BONE)
        self._fill(y < -48 - 0.004 * x**2, Tissue.MUSCLE)
        for bone in _PUBIS:
            self._fill(self._implicit(bone) < 0, Tissue.BONE)
        # The levator ani hangs as a sling around rectum and prostate.
        sling = np.hypot(x / 32, (y + 14) / 40)
        self._fill((np.abs(sling - 1) < 0.09) & (y < 12) & (z < 22), Tissue.MUSCLE)
        bladder = self._implicit(_BLADDER)
        self._fill(bladder < 0, Tissue.BLADDER_WALL)
        self._fill(bladder < -0.12, Tissue.BLADDER)
        rectum = self._implicit(_RECTUM)
        self._fill(rectum < 0, Tissue.RECTUM_WALL)
        self._fill(rectum < -0.3, Tissue.RECTUM)
        prostate = self._implicit(_PROSTATE)
        self._fill(prostate < 0.1, Tissue.CAPSULE)
        self._fill(prostate < 0, Tissue.PERIPHERAL)
        transition = (prostate < -0.1) & (self._implicit(_TRANSITION) < 0)
        self._fill(transition, Tissue.TRANSITION)
        self._fill(transition & (smooth_noise(self._shape, (13, 13, 8), self._rng) > 0.6), Tissue.NODULE)


def draw(domain: int, size: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> Drawn:
    """Draw a pelvis and render it as one of the two sites does.

    Args:
        domain: 0 for the site with a surface coil, 1 for the one with an endorectal coil.
        size: voxels along right-left, back-front and foot-head.
        spacing: nominal voxel size in mm along each; that of a case differs by some per cent, and the second site's
            slices are a fifth thinner.
        rng: the only source of randomness.

    Returns:
        Image in arbitrary units (float32), labels and affine.
    """
    sizes = np.asarray(spacing) * np.repeat(rng.uniform(0.93, 1.07, 2), (2, 1)) * (1, 1, 0.8 if domain else 1.0)
    affine = placed(np.diag([*sizes, 1.0]), size, rng)
    points = grid_points(affine, size)
    anatomy = Pelvis(points, rng)
    image = _contrast(anatomy.tissue, rng)
    image *= 1.0 + 0.08 * _grain(size, rng)
    if domain:
        image = 0.2 + 0.7 * image**0.75
        image = gaussian_filter(image, 0.8, mode="nearest", truncate=3.0)
        distance = np.linalg.norm(points[:2] - np.asarray([0.0, -34.0]).reshape(2, 1, 1, 1), axis=0)
        coil = 0.45 + 1.5 * np.exp(-distance / rng.uniform(22, 32))
        image = rician(image * coil, rng.uniform(0.025, 0.04), rng)
        scale = rng.uniform(250, 450)
    else:
        image = gaussian_filter(image, 0.5, mode="nearest", truncate=3.0)
        image = rician(image * bias_field(size, 0.05, 0.15, rng), rng.uniform(0.015, 0.03), rng)
        scale = rng.uniform(700, 1000)
    return Drawn(np.asarray(image * scale, dtype=np.float32), anatomy.labels, affine)


def _contrast(tissue: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give every tissue one value of its own for this case."""
    values = np.asarray([rng.normal(*_MAGNITUDE[kind]) for kind in Tissue], dtype=np.float32)
    return np.asarray(np.clip(values, 0.0, 1.0)[tissue])


def _grain(size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    noise = gaussian_filter(rng.standard_normal(size, dtype=np.float32), 0.8, truncate=3.0)
    return np.asarray(noise / noise.std(), dtype=np.float32)
