# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Domain mixing: masks that say which part of a source image goes onto a target image, and complementary mixes.

Class masks are ClassMix (Olsson et al., WACV 2021, arXiv 2007.07936) as used by DACS (Tranheden et al., WACV 2021,
arXiv 2007.08702); box masks are CutMix (Yun et al., ICCV 2019). Connected components are our addition for volumes,
where whole objects should move. The complementary mix is DA-Cal's (arXiv 2602.20860).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from dacal_med.core.batch import LabelledBatch
from dacal_med.core.tensors import plain


class MaskGenerator(Protocol):
    """Chooses the part of each source image that is pasted."""

    def __call__(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return a bool mask ``(B, 1, *spatial)`` for integer labels ``(B, 1, *spatial)``."""
        ...


@dataclass(frozen=True)
class NoMask:
    """Nothing is pasted: the mix is the target image alone, its complement the source image alone."""

    def __call__(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return an empty mask; the labels only give the shape, and nothing is drawn."""
        return torch.zeros_like(plain(labels), dtype=torch.bool)


@dataclass(frozen=True)
class ClassMask:
    """Half of the classes present, chosen for each sample on its own.

    Args:
        share: share of the present classes that is chosen, rounded up.
        ignore_index: label that is never inside the mask; ``None`` for none.

    Raises:
        ValueError: if ``share`` is outside ``[0, 1]``.
    """

    share: float = 0.5
    ignore_index: int | None = 255

    def __post_init__(self) -> None:
        _check_share("share", self.share)

    def __call__(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mask of the chosen classes."""
        labels = plain(labels)
        mask = torch.zeros_like(labels, dtype=torch.bool)
        for sample, inside in zip(labels, mask, strict=True):
            present = sample.unique()
            if self.ignore_index is not None:
                present = present[present != self.ignore_index]
            chosen = present[_draw(len(present), self.share, generator, present.device)]
            inside.copy_(torch.isin(sample, chosen))
        return mask


@dataclass(frozen=True)
class BoxMask:
    """One random box per sample (CutMix, Yun et al., ICCV 2019, arXiv 1905.04899).

    With its complement it is the bidirectional copy-paste of Bai et al. (CVPR 2023, arXiv 2305.00673). Unlike a class
    mask its outline says nothing about the labels.

    Args:
        min_share: smallest share of the volume inside the box.
        max_share: largest share.

    Raises:
        ValueError: unless ``0 < min_share <= max_share <= 1``.
    """

    min_share: float = 0.25
    max_share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.min_share <= self.max_share <= 1.0:
            raise ValueError(
                f"min_share, max_share: found {self.min_share}, {self.max_share}, "
                f"wanted 0 < min_share <= max_share <= 1"
            )

    def __call__(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mask of the box; the labels only give the shape."""
        labels = plain(labels)
        mask = torch.zeros_like(labels, dtype=torch.bool)
        size = labels.shape[2:]
        for inside in mask:
            draw = torch.rand(2 * len(size), generator=generator).tolist()
            share = self.min_share + (self.max_share - self.min_share) * draw[0]
            # Log-shares of the axes sum to the log-share of the box, so that elongated boxes occur too.
            cuts = sorted(draw[1 : len(size)])
            parts = [b - a for a, b in zip([0.0, *cuts], [*cuts, 1.0], strict=True)]
            lengths = [min(n, max(1, round(n * share**part))) for n, part in zip(size, parts, strict=True)]
            starts = [int(u * (n - length + 1)) for u, n, length in zip(draw[len(size) :], size, lengths, strict=True)]
            box = tuple(slice(start, start + length) for start, length in zip(starts, lengths, strict=True))
            inside[(slice(None), *box)] = True
        return mask


@dataclass(frozen=True)
class ComponentMask:
    """Half of the connected components of all classes but the background: whole objects move, not slices of them.

    Args:
        share: share of the components that is chosen, rounded up.
        spacing: voxel size in mm per spatial axis, in which ``margin`` and ``min_volume`` are measured; ``None`` for 1.
        margin: each chosen component grows by this distance in mm, so that its surroundings move with it.
        min_volume: components below this volume (mm to the power of the number of axes) are not chosen.
        background: class whose components are not objects; ``None`` for none.
        ignore_index: label that is never inside the mask; ``None`` for none.

    Raises:
        ValueError: if a number is out of range.
    """

    share: float = 0.5
    spacing: Sequence[float] | None = None
    margin: float = 0.0
    min_volume: float = 0.0
    background: int | None = 0
    ignore_index: int | None = 255

    def __post_init__(self) -> None:
        _check_share("share", self.share)
        if self.margin < 0.0 or self.min_volume < 0.0 or any(not s > 0.0 for s in self.spacing or ()):
            raise ValueError(
                f"found margin={self.margin}, min_volume={self.min_volume}, spacing={self.spacing}; "
                f"wanted margin >= 0, min_volume >= 0 and positive spacing"
            )

    def __call__(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return the mask of the chosen components; empty for a sample without any.

        Raises:
            ValueError: if ``spacing`` has another number of axes than ``labels``.
        """
        labels = plain(labels)
        if self.spacing is not None and len(self.spacing) != labels.dim() - 2:
            raise ValueError(
                f"spacing: found {len(self.spacing)} numbers, wanted {labels.dim() - 2}, one per spatial axis"
            )
        arrays = labels[:, 0].cpu().numpy()
        masks = np.stack([self._sample(array, generator) for array in arrays])
        return torch.from_numpy(masks).unsqueeze(1).to(labels.device)

    def _sample(self, labels: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        spacing = (1.0,) * labels.ndim if self.spacing is None else tuple(self.spacing)
        components = self._components(labels, math.prod(spacing))
        chosen = [components[int(i)] for i in _draw(len(components), self.share, generator, torch.device("cpu"))]
        mask = np.zeros(labels.shape, dtype=bool)
        for component in chosen:
            mask |= component
        if self.margin > 0.0 and mask.any():
            mask = ndimage.distance_transform_edt(~mask, sampling=spacing) <= self.margin
        if self.ignore_index is not None:
            mask &= labels != self.ignore_index
        return mask

    def _components(self, labels: np.ndarray, voxel_volume: float) -> list[np.ndarray]:
        neighbours = ndimage.generate_binary_structure(labels.ndim, labels.ndim)
        components = []
        for value in np.unique(labels):
            if value in (self.background, self.ignore_index):
                continue
            numbered, count = ndimage.label(labels == value, structure=neighbours)
            volumes = np.bincount(numbered.ravel(), minlength=count + 1) * voxel_volume
            components += [numbered == k for k in range(1, count + 1) if volumes[k] >= self.min_volume]
        return components


def mix(mask: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Take ``inside`` where the mask holds, ``outside`` elsewhere.

    Args:
        mask: ``(B, 1, *spatial)`` bool.
        inside: ``(B, channels, *spatial)``.
        outside: as ``inside``.

    Raises:
        ValueError: if the shapes do not fit or the mask is not bool.
    """
    mask, inside, outside = plain(mask), plain(inside), plain(outside)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: found dtype {mask.dtype}, wanted torch.bool")
    if inside.shape != outside.shape or mask.shape != (inside.shape[0], 1, *inside.shape[2:]):
        raise ValueError(
            f"found mask {tuple(mask.shape)}, inside {tuple(inside.shape)}, outside {tuple(outside.shape)}; wanted two "
            f"tensors of one shape (B, channels, *spatial) and a mask (B, 1, *spatial)"
        )
    return torch.where(mask, inside, outside)


def mix_batches(mask: Tensor, inside: LabelledBatch, outside: LabelledBatch) -> LabelledBatch:
    """Mix images, targets and weights alike: every voxel keeps its own supervision."""
    return LabelledBatch(
        mix(mask, inside.image, outside.image),
        mix(mask, inside.targets, outside.targets),
        mix(mask, inside.weights, outside.weights),
    )


def complementary_mixes(
    mask: Tensor, source: LabelledBatch, target: LabelledBatch
) -> tuple[LabelledBatch, LabelledBatch]:
    """Return the mix ``M * source + (1 - M) * target`` and its complement ``(1 - M) * source + M * target``.

    Args:
        mask: ``(B, 1, *spatial)`` bool, M.
        source: labelled images.
        target: images with pseudo-labels.
    """
    return mix_batches(mask, source, target), mix_batches(mask, target, source)


def _draw(count: int, share: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Return the indices of a random ``share`` of ``count`` things, rounded up."""
    return torch.randperm(count, generator=generator)[: math.ceil(count * share)].to(device)


def _check_share(name: str, share: float) -> None:
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"{name}: found {share}, wanted a number in [0, 1]")
