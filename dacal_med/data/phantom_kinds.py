# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The kinds of phantom by name: which two domains, which classes, how large, and who draws a case."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.spatial.transform import Rotation

from dacal_med.data import phantom_brain, phantom_em, phantom_fundus, phantom_prostate
from dacal_med.data.phantom_anatomy import LABELS, Abdomen
from dacal_med.data.phantom_rendering import render_ct, render_mr
from dacal_med.data.phantom_shapes import Drawn, grid_points, placed


@dataclass(frozen=True)
class PhantomKind:
    """One kind of phantom.

    Attributes:
        title: name of the data set.
        domains: folder and file names of source and target.
        labels: names by value.
        image_size: voxels or pixels along each axis where the caller names none.
        draw: draws a case from its domain (0 source, 1 target), image size, voxel size in mm along each axis (empty for
            pictures) and the only source of randomness.
        spacing_mm: nominal voxel size where the caller names none; None for pictures, which have no scale.
        proportions: of the voxel size along the axes.
        modality: of source and target; empty to let it be guessed.
    """

    title: str
    domains: tuple[str, str]
    labels: Mapping[int, str]
    image_size: tuple[int, ...]
    draw: Callable[[int, tuple[int, ...], tuple[float, ...], np.random.Generator], Drawn]
    spacing_mm: float | None = None
    proportions: tuple[float, ...] = ()
    modality: tuple[str, str] | None = None

    def spacing(self, nominal: float | None) -> tuple[float, ...]:
        """Voxel size in mm along each axis, empty for pictures."""
        return () if nominal is None else tuple(nominal * part for part in self.proportions)


def _draw_abdomen(domain: int, size: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> Drawn:
    affine = (_ct_affine, _mr_affine)[domain](size, spacing[0], rng)
    anatomy = Abdomen(grid_points(affine, size), rng)
    return Drawn((render_ct, render_mr)[domain](anatomy.tissue, rng), anatomy.labels, affine)


def _ct_affine(size: tuple[int, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Stored left, posterior, superior; square pixels and a slice distance of their own per case."""
    pixel = spacing * rng.uniform(0.94, 1.06)
    affine = np.diag([-pixel, -pixel, spacing * rng.uniform(0.95, 1.1), 1.0])
    return placed(affine, size, rng)


def _mr_affine(size: tuple[int, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Stored right, anterior, superior, slightly oblique."""
    sizes = spacing * rng.uniform(0.94, 1.08, 3)
    turn = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * sizes
    return placed(affine, size, rng)


KINDS: dict[str, PhantomKind] = {
    "abdomen": PhantomKind(
        title="Phantom abdomen, CT to MR",
        domains=("ct", "mr"),
        labels=LABELS,
        image_size=(72, 56, 40),
        draw=_draw_abdomen,
        spacing_mm=5.0,
        proportions=(1.0, 1.0, 1.0),
        modality=("CT", "MR"),
    ),
    "prostate": PhantomKind(
        title="Phantom prostate in T2 MR, one site to another",
        domains=("a", "b"),
        labels=phantom_prostate.LABELS,
        image_size=(56, 56, 24),
        draw=phantom_prostate.draw,
        spacing_mm=2.0,
        proportions=(1.0, 1.0, 1.75),
        modality=("MR", "MR"),
    ),
    "brain_tumour": PhantomKind(
        title="Phantom brain tumour, T2 to T1 with contrast agent",
        domains=("t2", "t1ce"),
        labels=phantom_brain.LABELS,
        image_size=(56, 64, 48),
        draw=phantom_brain.draw,
        spacing_mm=3.0,
        proportions=(1.0, 1.0, 1.0),
        modality=("MR", "MR"),
    ),
    "mitochondria": PhantomKind(
        title="Phantom mitochondria in electron microscopy, one microscope to another",
        domains=("a", "b"),
        labels=phantom_em.LABELS,
        image_size=(192, 192),
        draw=phantom_em.draw,
    ),
    "disc_cup": PhantomKind(
        title="Phantom optic disc and cup in fundus photographs, one camera to another",
        domains=("a", "b"),
        labels=phantom_fundus.DISC_CUP,
        image_size=(192, 192),
        draw=partial(phantom_fundus.draw, "disc_cup"),
    ),
    "vessels": PhantomKind(
        title="Phantom vessels in fundus photographs, one camera to another",
        domains=("a", "b"),
        labels=phantom_fundus.VESSELS,
        image_size=(192, 192),
        draw=partial(phantom_fundus.draw, "vessels"),
    ),
}
