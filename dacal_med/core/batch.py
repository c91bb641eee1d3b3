# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Images with what supervises them: soft targets and a weight per voxel, and the loss that is linear in the targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from dacal_med.core.tensors import plain


@dataclass(frozen=True)
class LabelledBatch:
    """Images and their supervision. Hard labels are one-hot targets; an ignored voxel has weight 0.

    Attributes:
        image: ``(B, channels, *spatial)``, floating point.
        targets: ``(B, C, *spatial)`` class probabilities, floating point.
        weights: ``(B, 1, *spatial)``, at least 0; 0 leaves the voxel out.
    """

    image: Tensor
    targets: Tensor
    weights: Tensor

    def in_parts(self, parts: int) -> list[LabelledBatch]:
        """Return ``parts`` batches of the same size, in order; see :func:`in_parts`."""
        tensors = [in_parts(tensor, parts) for tensor in (self.image, self.targets, self.weights)]
        return [LabelledBatch(*part) for part in zip(*tensors, strict=True)]


def in_parts(tensor: Tensor, parts: int) -> list[Tensor]:
    """Split a batch ``(B, ...)`` into equal parts, views of ``B / parts`` samples each; an empty one into empty ones.

    Raises:
        ValueError: if ``parts`` does not divide ``B``.
    """
    if len(tensor) % parts:
        raise ValueError(f"parts: found {parts} for a batch of {len(tensor)}, wanted a divisor")
    return [tensor] * parts if len(tensor) == 0 else list(tensor.split(len(tensor) // parts))


def from_labels(image: Tensor, labels: Tensor, num_classes: int, ignore_index: int | None = 255) -> LabelledBatch:
    """Turn integer labels into one-hot targets.

    Args:
        image: ``(B, channels, *spatial)``.
        labels: ``(B, 1, *spatial)``, integers in ``[0, num_classes)`` or ``ignore_index``.
        num_classes: number of classes.
        ignore_index: label without supervision: weight 0 and targets all 0; ``None`` allows none.

    Returns:
        The batch, with targets and weights of the image's dtype.

    Raises:
        ValueError: if the shapes do not fit or a label is out of range.
    """
    image, labels = plain(image), plain(labels)
    if labels.shape != (image.shape[0], 1, *image.shape[2:]):
        raise ValueError(f"labels: found shape {tuple(labels.shape)}, wanted {(image.shape[0], 1, *image.shape[2:])}")
    labels = labels.long()
    ignored = torch.zeros_like(labels, dtype=torch.bool) if ignore_index is None else labels == ignore_index
    kept = labels.masked_fill(ignored, 0)
    if kept.numel() and (int(kept.min()) < 0 or int(kept.max()) >= num_classes):
        raise ValueError(
            f"labels: found values from {int(kept.min())} to {int(kept.max())}, wanted 0 to {num_classes - 1}"
            f"{'' if ignore_index is None else f' or {ignore_index} (ignored)'}"
        )
    dtype = image.dtype if image.is_floating_point() else torch.float32
    weights = (~ignored).to(dtype)
    targets = functional.one_hot(kept[:, 0], num_classes).movedim(-1, 1).to(dtype) * weights
    return LabelledBatch(image, targets, weights)


def soft_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    r"""Weighted cross-entropy with soft targets, :math:`\frac1N \sum w \cdot (-\sum_c y_c \log p_c)`.

    ``N`` counts all voxels, those of weight 0 included, as in DACS (arXiv 2007.08702): a batch of few supervised voxels
    weighs little. The loss is linear in ``targets``, which makes the meta-gradient exact.

    Args:
        logits: ``(B, C, *spatial)``.
        targets: ``(B, C, *spatial)`` class probabilities.
        weights: ``(B, 1, *spatial)``.

    Returns:
        A scalar.
    """
    voxels = -(targets * logits.log_softmax(dim=1)).sum(dim=1, keepdim=True)
    return (weights * voxels).sum() / weights.numel()
