# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Random sections of neural tissue as two electron microscopes show them, with their mitochondria.

Cells are those of a warped Voronoi diagram with dark membranes between them, and hold granules, rings of vesicles and
mitochondria: dark ovals with a membrane of their own and folds (cristae) inside. The first microscope is a transmission
one: sharp, high contrast, shot noise. The second scans a milled block: blurred, bright and flat, with the stripes that
the ion beam leaves (curtaining). Only ovals with cristae are labelled, not the lysosomes that are as dark without them.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from dacal_med.data.phantom_shapes import Drawn, smooth_noise

LABELS = {0: "background", 1: "mitochondria"}
_CELL = 46.0  # pixels between the centres of neighbouring cells
_MEMBRANE = 1.5  # half-width in pixels


def draw(domain: int, size: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> Drawn:
    """Draw a section and picture it with one of the two microscopes.

    Args:
        domain: 0 for transmission, 1 for the milled block.
        size: rows and columns in pixels.
        spacing: not used: pictures have no scale.
        rng: the only source of randomness.

    Returns:
        Grey picture and labels, both uint8 ``size``.
    """
    rows, columns = size
    grid = np.indices(size, dtype=np.float32)
    warped = grid + 7.0 * np.stack([smooth_noise(size, _knots(size, 28), rng) for _ in range(2)])
    # A jittered lattice: two centres side by side would smear the membrane between them.
    lattice = np.stack(np.meshgrid(*(np.arange(-0.5, n / _CELL + 1) for n in size), indexing="ij"), axis=-1)
    seeds = (lattice + rng.uniform(-0.36, 0.36, lattice.shape)).reshape(-1, 2) * _CELL
    distances, nearest = cKDTree(seeds).query(np.moveaxis(warped, 0, -1), k=2)
    wall, cell = distances[..., 1] - distances[..., 0], nearest[..., 0]
    brightness = rng.normal(0.74, 0.05, len(seeds))
    image = np.asarray(brightness[cell], dtype=np.float32)
    image -= 0.10 * np.abs(smooth_noise(size, _knots(size, 5), rng))  # reticulum and filaments
    _granules(image, wall, rng)
    labels = np.zeros(size, dtype=np.uint8)
    for number in range(max(3, round(rows * columns / 29.0**2))):
        _organelle(image, labels, grid, wall, cell, rng, cristae=number % 5 != 4)
    image -= 0.55 * np.exp(-((wall / (2 * _MEMBRANE)) ** 2))
    picture = (_transmission, _milled_block)[domain](image, rng)
    return Drawn(np.asarray(np.clip(np.rint(picture * 255), 0, 255), dtype=np.uint8), labels, None)


def _knots(size: tuple[int, ...], pixels: int) -> tuple[int, ...]:
    return tuple(max(3, n // pixels) for n in size)


def _granules(image: np.ndarray, wall: np.ndarray, rng: np.random.Generator) -> None:
    """Dark granules everywhere, and vesicles, small rings, in crowds."""
    dots = rng.uniform(size=image.shape) < 0.006
    image -= gaussian_filter(dots.astype(np.float32), 0.9, truncate=3.0) * 1.6
    crowd = smooth_noise(image.shape, _knots(image.shape, 30), rng) > 0.8
    middles = (rng.uniform(size=image.shape) < 0.02) & crowd & (wall > 8)
    spread = middles.astype(np.float32)
    ring = gaussian_filter(spread, 1.9, truncate=3.0) - 0.8 * gaussian_filter(spread, 1.1, truncate=3.0)
    image -= 6.0 * ring


def _organelle(
    image: np.ndarray,
    labels: np.ndarray,
    grid: np.ndarray,
    wall: np.ndarray,
    cell: np.ndarray,
    rng: np.random.Generator,
    *,
    cristae: bool,
) -> None:
    """A mitochondrion inside one cell, or a lysosome; nothing where there is no room."""
    rows, columns = image.shape
    half = (rng.uniform(9, 19), rng.uniform(6.5, 9.5)) if cristae else (rng.uniform(4, 7),) * 2
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(4.2, 5.6), rng.uniform(0, 6.28)
    row, column = rng.uniform(0, rows - 1), rng.uniform(0, columns - 1)
    bumps = smooth_noise(image.shape, _knots(image.shape, 14), rng)
    here = int(row), int(column)
    if wall[here] < 1.2 * half[1] or labels[here]:
        return
    down, right = grid[0] - row, grid[1] - column
    along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    radius = np.hypot(along / half[0], across / half[1]) + 0.1 * bumps
    free = (cell == cell[here]) & (wall > 5) & (labels == 0)
    inside = (radius < 1) & free
    if not cristae:
        image[inside] = 0.22 + 0.05 * bumps[inside]
        return
    # Folds run across, bent by the same noise that makes the outline bumpy.
    folds = 0.5 + 0.5 * np.cos(2 * np.pi * (along + 2.5 * bumps) / period + phase)
    matrix = 0.42 + 0.13 * (folds**2 - 0.5)
    border = np.exp(-(((1 - radius) * half[1] / 1.4) ** 2))
    image[inside] = (matrix - 0.24 * border)[inside]
    labels[inside] = 1


def _transmission(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shading = 1.0 + 0.06 * smooth_noise(image.shape, (3, 3), rng)
    image = gaussian_filter(image, rng.uniform(0.6, 0.8), truncate=3.0) * shading
    return np.asarray(image + rng.normal(0.0, rng.uniform(0.05, 0.08), image.shape))


def _milled_block(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    image = gaussian_filter(image, rng.uniform(1.2, 1.5), truncate=3.0)
    gain, level = rng.uniform(0.5, 0.6), rng.uniform(0.26, 0.32)
    image = level + gain * np.clip(image, 0.0, 1.0) ** 1.4
    curtain = np.repeat(gaussian_filter(rng.normal(0.0, 1.0, image.shape[1]), 0.7)[None], image.shape[0], axis=0)
    image = image + 0.012 * curtain + 0.03 * smooth_noise(image.shape, (3, 3), rng)
    return np.asarray(image + gaussian_filter(rng.normal(0.0, 0.05, image.shape), 0.6, truncate=3.0))
