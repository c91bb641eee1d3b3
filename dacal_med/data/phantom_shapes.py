# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What the anatomies of all phantoms are made of: deformed super-ellipsoids, painted in an order of priority.

Each structure is an implicit shape, inside where its function is below zero, with a random pose, size and exponent, and
a smooth bumpy surface; one smooth random displacement field bends the whole. The idea follows the digital phantoms XCAT
(Segars et al., Med Phys 37 (2010) 4902) and Shepp-Logan (1974), reduced to what a segmentation network needs to find:
organs with stable neighbours and changing shapes. Coordinates are patient millimetres: x to the right, y to the front,
z to the head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
from scipy.ndimage import zoom
from scipy.spatial.transform import Rotation


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


class Drawn(NamedTuple):
    """One case: what the scanner shows, what is there, and where.

    Attributes:
        image: ``(*spatial)`` of a volume; bytes ``(rows, columns)`` or ``(rows, columns, 3)`` of a picture.
        labels: uint8, the spatial shape of the image.
        affine: voxel index to patient millimetres, ``(4, 4)``; None for pictures.
    """

    image: np.ndarray
    labels: np.ndarray
    affine: np.ndarray | None


def grid_points(affine: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Coordinates in mm of every voxel seen from the centre of the grid, ``(3, *size)``."""
    voxels = np.indices(size, dtype=np.float64)
    points = np.tensordot(affine[:3, :3], voxels, axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)
    # The anatomy sits at the centre of the grid wherever the scanner's origin is.
    middle = affine[:3, :3] @ ((np.asarray(size) - 1) / 2) + affine[:3, 3]
    return np.asarray(points - middle.reshape(3, 1, 1, 1))


def placed(affine: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Put the grid's centre at a random table position, as scanners do; changes and returns ``affine``."""
    centre = rng.uniform(-60, 60, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(size) - 1) / 2)
    return np.asarray(np.round(affine, 6))


def bias_field(shape: tuple[int, ...], low: float, high: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth gain of mean one, float32; its largest deviation is drawn between ``low`` and ``high``."""
    field = smooth_noise(shape, (3,) * len(shape), rng)
    return np.asarray(1.0 + field / np.abs(field).max() * rng.uniform(low, high), dtype=np.float32)


def rician(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of an image with complex Gaussian noise (Gudbjartsson and Patz, Magn Reson Med 34 (1995) 910)."""
    real, imaginary = rng.standard_normal((2, *image.shape), dtype=np.float32) * sigma
    return np.asarray(np.hypot(image + real, imaginary), dtype=np.float32)


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


class Anatomy(ABC):
    """One random anatomy, sampled on a grid of points.

    Args:
        points: patient coordinates in mm of every voxel, ``(3, *spatial)``.
        rng: the only source of randomness.

    Attributes:
        tissue: a number per voxel that the renderings give a brightness, uint8 ``(*spatial)``; 0 where nothing is.
        labels: the label per voxel, uint8 ``(*spatial)``.
    """

    LABEL_OF_TISSUE: ClassVar[Mapping[int, int]]
    BEND_MM: ClassVar[float] = 5.0  # typical displacement

    def __init__(self, points: np.ndarray, rng: np.random.Generator) -> None:
        self._rng = rng
        self._shape: tuple[int, ...] = tuple(points.shape[1:])
        self._size = float(np.clip(rng.normal(1.0, 0.06), 0.86, 1.12))
        self._stretch = np.clip(rng.normal(1.0, 0.04, 3), 0.9, 1.1)
        bend = np.stack([smooth_noise(self._shape, (5, 4, 4), rng) for _ in range(3)]) * self.BEND_MM
        offset = rng.normal(0.0, 4.0, (3, 1, 1, 1))
        scale = (self._size * self._stretch).reshape(3, 1, 1, 1)
        self._points = ((points + bend + offset) / scale).astype(np.float32)
        self.tissue = np.zeros(self._shape, dtype=np.uint8)
        self._paint()
        lookup = np.zeros(256, dtype=np.uint8)
        for tissue, label in self.LABEL_OF_TISSUE.items():
            lookup[tissue] = label
        self.labels = lookup[self.tissue]

    @abstractmethod
    def _paint(self) -> None:
        """Paint from what lies outermost or gives way, to what keeps its place."""

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

    def _fill(self, where: np.ndarray, tissue: int) -> None:
        self.tissue[where] = tissue
