# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Between the image's own grid and the grid that the network works on, a slab at a time.

Which grid that is, the bundle's own spatial transforms say: they run lazily (MONAI's lazy resampling) on an image
without memory. The voxels are then resampled slab by slab with the same mapping and the same trilinear interpolation
with repeated borders, so that memory does not grow with the number of slabs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LazyTransform
from monai.transforms.io.dictionary import LoadImaged
from torch import Tensor
from torch.nn.functional import grid_sample

from dacal_med.io.errors import InputError

SLAB_BYTES = 96 * 2**20
"""What the pieces of a slab may take together, about."""

_EXACT = 1e-3  # of a voxel

Read = Callable[[Sequence[slice]], Tensor]
"""Gives ``(channels, *box)`` as float32 of a box of an image."""


@dataclass(frozen=True)
class Grid:
    """The grid that the network works on.

    Attributes:
        shape: its size along each axis.
        affine: its voxel index to patient millimetres, ``(4, 4)``; of pictures, to their own pixels.
        to_image: its voxel index to the image's, ``(dims + 1, dims + 1)``.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    to_image: np.ndarray

    @property
    def from_image(self) -> np.ndarray:
        """The image's voxel index to the grid's, ``(dims + 1, dims + 1)``."""
        return np.linalg.inv(self.to_image)

    def axis_along(self, axis: int) -> int:
        """The axis of the grid that runs along an axis of the image."""
        dims = len(self.shape)
        return int(np.argmax(np.abs(self.from_image[:dims, axis] * self.spread())))

    def spread(self) -> np.ndarray:
        """Millimetres that a step along each axis goes."""
        dims = len(self.shape)
        return np.linalg.norm(self.affine[:3, :dims], axis=0)


@dataclass(frozen=True)
class Preprocessing:
    """A bundle's preprocessing, taken apart.

    Attributes:
        spatial: what moves voxels: MONAI's lazy transforms.
        intensity: what comes after and changes values alone.
    """

    spatial: tuple[Any, ...]
    intensity: Compose

    @classmethod
    def of(cls, preprocessing: Compose) -> Preprocessing:
        """Take a bundle's preprocessing apart; loading is left out.

        Raises:
            InputError: a spatial transform comes after one of intensities.
        """
        rest = [step for step in preprocessing.transforms if not isinstance(step, LoadImaged)]
        spatial = []
        while rest and isinstance(rest[0], LazyTransform):
            spatial.append(rest.pop(0))
        if any(isinstance(step, LazyTransform) for step in rest):
            raise InputError("preprocessing: found a spatial transform after one of intensities; wanted it before")
        return cls(tuple(spatial), Compose(rest))

    def grid(self, shape: Sequence[int], affine: np.ndarray | None) -> Grid:
        """The grid on which the network works for an image.

        Args:
            shape: of the image.
            affine: of the image, RAS; None for pictures.

        Raises:
            InputError: it has no voxel.
        """
        dims = len(shape)
        own = np.eye(4) if affine is None else affine
        empty = torch.zeros(1).expand(1, *shape)
        data = {"image": MetaTensor(empty, affine=torch.as_tensor(own, dtype=torch.float64))}
        for step in self.spatial:
            data = step(data, lazy=True)
        image = data["image"]
        size = tuple(int(n) for n in image.peek_pending_shape())
        if min(size) < 1:
            raise InputError(f"preprocessing: gives a grid of size {size}; wanted voxels on every axis")
        target = np.asarray(image.peek_pending_affine(), dtype=np.float64)
        full = np.eye(4)
        inner = target.shape[0] - 1
        full[:inner, :inner], full[:inner, 3] = target[:inner, :inner], target[:inner, inner]
        mapping = np.linalg.solve(own, full)
        keep = [*range(dims), 3]
        return Grid(size, full, mapping[np.ix_(keep, keep)])


def slabs(shape: Sequence[int], axis: int, channels: int, mapping: np.ndarray) -> Iterator[tuple[int, int]]:
    """Cut an axis of a grid into slabs of bounded memory.

    Args:
        shape: of the grid.
        axis: of it.
        channels: of what is resampled onto it.
        mapping: index on the grid to index in the image that is resampled.

    Yields:
        First plane, and the one after the last.
    """
    # Per voxel: coordinates in double precision and as the sampler takes them, source, result and a copy of it.
    dims = len(shape)
    density = abs(float(np.linalg.det(mapping[:dims, :dims])))
    plane = float(np.prod(shape, dtype=np.float64)) / shape[axis]
    needed = plane * (8 + 4 * dims + 4 * channels * (2 + 2 * density))
    thick = max(1, int(SLAB_BYTES / needed))
    for start in range(0, shape[axis], thick):
        yield start, min(shape[axis], start + thick)


def resampled(read: Read, shape: Sequence[int], channels: int, mapping: np.ndarray, target: Sequence[int]) -> Tensor:
    """Resample a whole image, slab by slab: only image and result are in memory as a whole.

    Args:
        read: gives boxes of the image.
        shape: of the image.
        channels: of the image.
        mapping: index on the target grid to index in the image.
        target: shape of the target grid.

    Returns:
        ``(channels, *target)``, float32.
    """
    result = torch.empty(channels, *target)
    axis = int(np.argmax(target))
    for start, stop in slabs(target, axis, channels, mapping):
        box = [slice(start, stop) if k == axis else slice(0, size) for k, size in enumerate(target)]
        result[(slice(None), *box)] = resample(read, shape, mapping, box)
    return result


def _is_indexing(linear: np.ndarray, offset: np.ndarray) -> bool:
    """Whether a mapping only permutes and flips axes and moves by whole voxels: nothing is to be interpolated."""
    whole = np.rint(linear)
    return (
        np.allclose(linear, whole, rtol=0, atol=1e-6)
        and np.allclose(offset, np.rint(offset), rtol=0, atol=_EXACT)
        and bool((np.abs(whole).sum(0) == 1).all())
        and bool((np.abs(whole).sum(1) == 1).all())
    )


def resample(read: Read, source_shape: Sequence[int], mapping: np.ndarray, box: Sequence[slice]) -> Tensor:
    """Linear interpolation of an image on a box of another grid; outside the image its border is repeated.

    Args:
        read: gives boxes of the image.
        source_shape: size of the image.
        mapping: index on the other grid to index in the image, ``(dims + 1, dims + 1)``.
        box: of the other grid, with start and stop on every axis.

    Returns:
        ``(channels, *box)``.
    """
    dims = len(source_shape)
    linear, offset = mapping[:dims, :dims], mapping[:dims, dims]
    corners = np.array(list(itertools.product(*[(side.start, side.stop - 1) for side in box])), dtype=np.float64)
    places = corners @ linear.T + offset
    last = np.asarray(source_shape) - 1
    low = np.clip(np.floor(places.min(0)).astype(int), 0, last)
    high = np.clip(np.ceil(places.max(0)).astype(int), 0, last)
    if _is_indexing(linear, offset) and (places > -_EXACT).all() and (places < last + _EXACT).all():
        ends = np.rint([places.min(0), places.max(0)]).astype(int)
        crop = read([slice(int(a), int(b) + 1) for a, b in ends.T])
        signs = np.rint(linear).astype(int)
        order = [1 + int(np.argmax(np.abs(signs[:, axis]))) for axis in range(dims)]
        backwards = [1 + axis for axis in range(dims) if signs[:, axis].sum() < 0]
        return crop.permute(0, *order).flip(backwards)
    crop = read([slice(int(a), int(b) + 1) for a, b in zip(low, high, strict=True)])
    shape = [side.stop - side.start for side in box]
    coordinates = torch.empty(*shape, dims)
    axes = [torch.arange(side.start, side.stop, dtype=torch.float64) for side in box]
    for axis in range(dims):
        place = torch.full(shape, float(offset[axis] - low[axis]), dtype=torch.float64)
        for other, index in enumerate(axes):
            if linear[axis, other] != 0:
                place += (index * linear[axis, other]).reshape([-1 if k == other else 1 for k in range(dims)])
        # The sampler counts from -1 to 1, its last axis first.
        coordinates[..., dims - 1 - axis] = place * (2 / max(1, high[axis] - low[axis])) - 1
    sampled: Tensor = grid_sample(
        crop[None], coordinates[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]
    return sampled
