# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the student. The meta-gradient is that of the cross-entropy among them, where it is exact."""

from __future__ import annotations

import torch
from torch import Tensor

from dacal_med.core.batch import soft_cross_entropy
from dacal_med.engines.whole_batch import over_batch, sums_over_batch


@sums_over_batch
def soft_dice_loss(logits: Tensor, targets: Tensor, weights: Tensor, background: int | None = 0) -> Tensor:
    r"""Soft Dice loss that soft targets minimise too, over the classes that are the likeliest somewhere in the batch.

    :math:`1 - 2 \sum w \min(p, y) / \sum w (p + y)`, the Dice semimetric loss of Wang et al. (MICCAI 2023, arXiv
    2303.16296). On one-hot targets it is the soft Dice loss of V-Net (Milletari et al. 2016, arXiv 1606.04797); on soft
    ones that loss would be least for hard predictions, and undo what the temperature has softened. MONAI's ``DiceLoss``
    has no voxel weights, and its ``MaskedDiceLoss`` masks before the softmax. The sums are those of the whole batch,
    all ranks and micro-batches together.

    Args:
        logits: ``(B, C, *spatial)``.
        targets: ``(B, C, *spatial)`` class probabilities.
        weights: ``(B, 1, *spatial)``, 0 leaves a voxel out.
        background: class left out; ``None`` for none.

    Returns:
        ``1 - Dice``, averaged over classes, a scalar in ``[0, 1]``; 0 if no class is present.
    """
    axes = [0, *range(2, logits.dim())]
    probabilities = logits.softmax(dim=1)
    overlap = (torch.minimum(probabilities, targets) * weights).sum(dim=axes)
    total = ((probabilities + targets) * weights).sum(dim=axes)
    found = ((targets >= 0.5) & (weights > 0)).any(dim=0).flatten(1).any(dim=1)
    overlap, total, seen = over_batch(torch.stack([overlap, total, found.to(total.dtype)]))
    present = seen > 0
    if background is not None:
        present[background] = False
    dice = 2.0 * overlap / total.clamp_min(1e-6)
    return ((1.0 - dice) * present).sum() / present.sum().clamp_min(1)


@sums_over_batch
def dice_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice, the usual loss where structures are small (nnU-Net, arXiv 1809.10486)."""
    return soft_cross_entropy(logits, targets, weights) + soft_dice_loss(logits, targets, weights)
