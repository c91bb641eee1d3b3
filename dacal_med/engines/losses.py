# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Losses of the student on truth. Pseudo-labels are learned by cross-entropy, where the meta-gradient is exact."""

from __future__ import annotations

from torch import Tensor

from dacal_med.core.batch import soft_cross_entropy


def soft_dice_loss(logits: Tensor, targets: Tensor, weights: Tensor, background: int | None = 0) -> Tensor:
    """Soft Dice loss over the classes present in the batch (V-Net, Milletari et al. 2016, arXiv 1606.04797).

    MONAI's ``DiceLoss`` knows no voxel weights, and its ``MaskedDiceLoss`` masks before the softmax.

    Args:
        logits: ``(B, C, *spatial)``.
        targets: ``(B, C, *spatial)`` class probabilities.
        weights: ``(B, 1, *spatial)``, 0 leaves a voxel out.
        background: class left out; ``None`` for none.

    Returns:
        ``1 - Dice``, averaged over classes, a scalar in ``[0, 1]``; 0 if no class is present.
    """
    axes = [0, *range(2, logits.dim())]
    probabilities = logits.softmax(dim=1) * weights
    targets = targets * weights
    overlap = (probabilities * targets).sum(dim=axes)
    size = targets.sum(dim=axes)
    present = size > 0
    if background is not None:
        present[background] = False
    dice = 2.0 * overlap / (probabilities.sum(dim=axes) + size).clamp_min(1e-6)
    return ((1.0 - dice) * present).sum() / present.sum().clamp_min(1)


def dice_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice, the usual loss where structures are small (nnU-Net, arXiv 1809.10486)."""
    return soft_cross_entropy(logits, targets, weights) + soft_dice_loss(logits, targets, weights)
