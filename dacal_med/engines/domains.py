# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What one training iteration sees: labelled source, unlabelled target, held-out source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dacal_med.core.batch import LabelledBatch, from_labels
from dacal_med.core.tensors import plain
from dacal_med.errors import InputError


@dataclass(frozen=True)
class DomainBatch:
    """The tensors of one iteration, on the training device.

    Attributes:
        source: labelled source images, targets one-hot, ignored voxels of weight 0.
        source_labels: ``(B, 1, *spatial)`` integer source labels, from which mixing masks are drawn.
        target_image: ``(B, channels, *spatial)`` target images; there are no target labels.
        held_out: labelled source images that the student never trains on, or ``None`` if nothing was held out.
    """

    source: LabelledBatch
    source_labels: Tensor
    target_image: Tensor
    held_out: LabelledBatch | None


def _moved(value: Any, device: torch.device, non_blocking: bool) -> Tensor:
    return plain(value).to(device, non_blocking=non_blocking)


def prepare_domains(
    batch: Mapping[str, Mapping[str, Any]],
    device: torch.device,
    num_classes: int,
    ignore_index: int | None = 255,
    non_blocking: bool = False,
) -> DomainBatch:
    """Move a batch of :class:`dacal_med.data.paired.PairedLoader` to ``device`` and check that its parts fit together.

    Args:
        batch: ``{"source": {"image", "label"}, "target": {"image"}, "held_out": {"image", "label"}}`` with images
            ``(B, channels, *spatial)`` and labels ``(B, 1, *spatial)``; ``held_out`` may be missing.
        device: where the tensors go.
        num_classes: number of classes, the channels of the network's output.
        ignore_index: label value without supervision.
        non_blocking: copy asynchronously from pinned memory.

    Returns:
        The tensors of this iteration.

    Raises:
        InputError: if source, target and held-out images differ in shape, since they are mixed voxel by voxel.
    """
    image = _moved(batch["source"]["image"], device, non_blocking).float()
    labels = _moved(batch["source"]["label"], device, non_blocking).long()
    target = _moved(batch["target"]["image"], device, non_blocking).float()
    if target.shape != image.shape:
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
    return DomainBatch(from_labels(image, labels, num_classes, ignore_index), labels, target, held_out)
