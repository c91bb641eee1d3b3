# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What one training iteration sees: labelled source, unlabelled target, held-out source."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dacal_med.core.batch import LabelledBatch, from_labels, in_parts
from dacal_med.core.mixing import MaskGenerator
from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError


@dataclass(frozen=True)
class DomainBatch:
    """The tensors of one iteration, on the training device.

    Attributes:
        source: labelled source images, targets one-hot, ignored voxels of weight 0.
        source_labels: ``(B, 1, *spatial)`` integer source labels, from which mixing masks are drawn.
        target_image: ``(B, channels, *spatial)`` target images; there are no target labels. ``(0, channels, *spatial)``
            in iterations that learn from the source alone.
        held_out: labelled source images that the student never trains on, or ``None`` if nothing was held out or this
            iteration does not need them.
        seeds: one for each sample, see :func:`sample_seeds`; empty to draw them from torch's global generator.
    """

    source: LabelledBatch
    source_labels: Tensor
    target_image: Tensor
    held_out: LabelledBatch | None
    seeds: tuple[int, ...] = ()

    def generators(self, purpose: str) -> list[torch.Generator]:
        """Return a random generator on the CPU for each sample.

        What is drawn for a sample does not depend on the samples beside it, so that ranks and micro-batches draw what
        one large batch does.

        Args:
            purpose: draws for different purposes are independent.
        """
        seeds = self.seeds or torch.randint(2**62, (len(self.source_labels),)).tolist()
        key = zlib.crc32(purpose.encode())
        states = [np.random.SeedSequence([seed, key]).generate_state(1, np.uint64) for seed in seeds]
        return [torch.Generator().manual_seed(int(state[0] >> np.uint64(1))) for state in states]

    def masks(self, mask_generator: MaskGenerator) -> Tensor:
        """Draw a mask for each sample, ``(B, 1, *spatial)`` bool."""
        generators = self.generators("mask")
        return torch.cat(
            [mask_generator(self.source_labels[i : i + 1], generator) for i, generator in enumerate(generators)]
        )

    def in_parts(self, parts: int) -> list[DomainBatch]:
        """Return ``parts`` batches of the same size, in order; see :func:`dacal_med.core.batch.in_parts`."""
        if parts == 1:
            return [self]
        size = len(self.source_labels) // parts
        held = [None] * parts if self.held_out is None else self.held_out.in_parts(parts)
        return [
            DomainBatch(source, labels, target, held_out, self.seeds[i * size : (i + 1) * size])
            for i, (source, labels, target, held_out) in enumerate(
                zip(
                    self.source.in_parts(parts),
                    in_parts(self.source_labels, parts),
                    in_parts(self.target_image, parts),
                    held,
                    strict=True,
                )
            )
        ]


def sample_seeds(seed: int, iteration: int, samples: Sequence[int]) -> tuple[int, ...]:
    """Return a seed for each sample of an iteration.

    Args:
        seed: of the run.
        iteration: global number of the iteration.
        samples: global numbers of the samples in the batch over all ranks.
    """
    states = [np.random.SeedSequence([seed, iteration, sample]).generate_state(1, np.uint64) for sample in samples]
    return tuple(int(state[0] >> np.uint64(1)) for state in states)


def _moved(value: Any, device: torch.device, non_blocking: bool) -> Tensor:
    return plain(value).to(device, non_blocking=non_blocking)


def prepare_domains(
    batch: Mapping[str, Mapping[str, Any]],
    device: torch.device,
    num_classes: int,
    ignore_index: int | None = 255,
    non_blocking: bool = False,
    seeds: tuple[int, ...] = (),
) -> DomainBatch:
    """Move a batch of :class:`dacal_med.data.paired.PairedLoader` to ``device`` and check that its parts fit together.

    Args:
        batch: ``{"source": {"image", "label"}, "target": {"image"}, "held_out": {"image", "label"}}`` with images
            ``(B, channels, *spatial)`` and labels ``(B, 1, *spatial)``; all but ``source`` may be missing.
        device: where the tensors go.
        num_classes: number of classes, the channels of the network's output.
        ignore_index: label value without supervision.
        non_blocking: copy asynchronously from pinned memory.
        seeds: of the samples.

    Returns:
        The tensors of this iteration.

    Raises:
        InputError: if source, target and held-out images differ in shape, since they are mixed voxel by voxel.
    """
    image = _moved(batch["source"]["image"], device, non_blocking).float()
    labels = _moved(batch["source"]["label"], device, non_blocking).long()
    target = image[:0]
    if "target" in batch:
        target = _moved(batch["target"]["image"], device, non_blocking).float()
    if "target" in batch and target.shape != image.shape:
        raise InputError(
            f"source and target batches are mixed voxel by voxel and must have one shape: "
            f"found source {tuple(image.shape)}, target {tuple(target.shape)}. Crop or pad both to `roi_size`, "
            f"with the same number of channels and the same batch size."
        )
    held_out = None
    if "held_out" in batch:
        held_image = _moved(batch["held_out"]["image"], device, non_blocking).float()
        held_labels = _moved(batch["held_out"]["label"], device, non_blocking).long()
        if held_image.shape != image.shape:
            raise InputError(
                f"held-out source images must have the shape of the source images: "
                f"found {tuple(held_image.shape)}, wanted {tuple(image.shape)}"
            )
        held_out = from_labels(held_image, held_labels, num_classes, ignore_index)
    return DomainBatch(from_labels(image, labels, num_classes, ignore_index), labels, target, held_out, seeds)
