# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""MIC: masked image consistency on top of another host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dacal_med.core.batch import LabelledBatch
from dacal_med.core.masking import block_mask
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import Host, LossTerm, OnHost, pseudo_batch
from dacal_med.engines.hosts.dacs import DACS
from dacal_med.engines.hosts.strong import StrongAppearance
from dacal_med.io.errors import InputError
from dacal_med.kinds import is_number, is_whole


@dataclass
class MaskedConsistency(OnHost):
    """Masked image consistency, MIC (Hoyer, Dai, Wang, Van Gool, CVPR 2023, arXiv 2212.01322), on another host.

    To the terms of ``base`` it adds one on target images of which blocks are hidden: the student must infer them from
    their surroundings. The teacher has seen the whole image; its pseudo-labels supervise all of it, hidden or not.

    Args:
        base: the host below; DACS by default.
        mask_ratio: share of the blocks that is hidden, in ``[0, 1]``.
        block_share: edge of a block as a share of the image's longest axis, the same number of voxels along every axis
            (the whole of a shorter one); a sixteenth is what the published runs have, 64 pixels of crops of 1024.
        block_size: edge of a block in voxels instead, one number or one for each axis.
        masked_weight: factor of the masked term, at least 0.
        masked_appearance: options of :class:`StrongAppearance`, the colour jitter and blur of the image before its
            blocks are hidden, as the published runs on Cityscapes have them; none by default.
        masked_source: whether half of the term's weight goes to source images with hidden blocks and their labels, as
            in the published runs on ACDC and Dark Zurich.
        fill: what hidden voxels hold: ``"mean"`` the mean of each image and channel, which is what the paper's 0 means
            on its standardised images, or a number.

    Raises:
        InputError: if an option is of another type or out of range; when called, if a block does not fit the image, or
            for colour jitter of images without three channels.
    """

    base: Host = field(default_factory=DACS)
    mask_ratio: float = 0.7
    block_share: float = 0.0625
    block_size: int | Sequence[int] | None = None
    masked_weight: float = 1.0
    masked_appearance: Mapping[str, Any] | None = None
    masked_source: bool = False
    fill: float | str = "mean"
    uses_target: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.mask_ratio <= 1.0 or not 0.0 < self.block_share <= 1.0 or not self.masked_weight >= 0.0:
            raise InputError(
                f"host: found mask_ratio={self.mask_ratio}, block_share={self.block_share}, "
                f"masked_weight={self.masked_weight}; wanted [0, 1], (0, 1] and at least 0"
            )
        if not (self.fill == "mean" or is_number(self.fill)):
            raise InputError(f"host#fill: found {self.fill!r}, wanted 'mean' or a number")
        sizes = [self.block_size] if isinstance(self.block_size, int) else self.block_size
        if sizes is not None and not (_listed(sizes) and all(map(is_whole, sizes))):
            raise InputError(
                f"host#block_size: found {self.block_size!r}, wanted a whole number of voxels, one for each axis, or "
                f"null"
            )
        if not isinstance(self.masked_appearance, Mapping | None):
            raise InputError(f"host#masked_appearance: found {self.masked_appearance!r}, wanted options or null")
        try:
            self._appearance = StrongAppearance(**(self.masked_appearance or {}))
        except TypeError as error:
            raise InputError(f"host#masked_appearance: does not take these options: {error}") from error

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the terms of the host below and, in self-training, the masked term or terms.

        Raises:
            InputError: if ``block_size`` or ``masked_appearance`` does not fit the images, from the first iteration on.
        """
        self._blocks(batch.target_image.shape[2:])
        self._appearance.check(batch.source.image.shape[1])
        terms = self.base.terms(batch, mask, pseudo, hard)
        if pseudo is None:
            return terms
        weight = self.masked_weight * (0.5 if self.masked_source else 1.0)
        target = self._masked(pseudo_batch(batch.target_image, pseudo), batch, "masked")
        terms.append(LossTerm("masked", target, weight))
        if self.masked_source:
            source = self._masked(batch.source, batch, "masked_source")
            terms.append(LossTerm("masked_source", source, weight, truth=True))
        return terms

    def _masked(self, shown: LabelledBatch, batch: DomainBatch, name: str) -> LabelledBatch:
        """Return images of another appearance of which blocks are hidden, with their labels."""
        image = shown.image
        if self._appearance.changes:
            image = self._appearance(image, batch.generators(f"appearance of {name}"))
        size = image.shape[2:]
        masks = [block_mask(1, size, self._blocks(size), self.mask_ratio, g) for g in batch.generators(name)]
        hidden = torch.cat(masks).to(image.device)
        return replace(shown, image=torch.where(hidden, self._filling(image), image))

    def _blocks(self, size: Sequence[int]) -> list[int]:
        """Return the edges of a block along each axis."""
        if self.block_size is None:
            edge = max(1, round(self.block_share * max(size)))
            return [min(edge, n) for n in size]
        blocks = [self.block_size] * len(size) if isinstance(self.block_size, int) else list(self.block_size)
        if len(blocks) != len(size):
            raise InputError(
                f"host#block_size: found {len(blocks)} numbers, wanted {len(size)}, one for each axis of the images, "
                f"or one for all"
            )
        if any(not 1 <= b <= n for b, n in zip(blocks, size, strict=True)):
            raise InputError(f"host#block_size: found {blocks} for images of {list(size)}, wanted 1 up to these")
        return blocks

    def _filling(self, image: Tensor) -> Tensor:
        if isinstance(self.fill, str):
            return image.mean(dim=tuple(range(2, image.dim())), keepdim=True)
        return torch.full((), float(self.fill), dtype=image.dtype, device=image.device)


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
