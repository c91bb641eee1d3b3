# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""PseudoCal: a labelled pseudo-target from unlabelled target images (Hu et al., ICML 2024, arXiv 2307.07489).

The paper's: two target images are mixed at inference, ``lam * x_i + (1 - lam) * x_j`` with a fixed ``lam`` of 0.65; the
network's hard prediction of ``x_i``, the dominant image, is the label of the mixture; only pairs of which the two
predictions differ are kept; temperature scaling on the mixtures gives the temperature for the target. The idea is that
a mixture is predicted wrongly about as often as ``x_i`` is.

Ours: the paper's sample is an image with one class, here it is a voxel. Images are mixed whole, and it is at each voxel
that the two predictions must differ; voxels where they agree (nearly all of the background) are ignored. Images of
different sizes are cropped about their centres. The paper's code pairs images within shuffled batches and may pair an
image with itself; here a random cycle through all images gives each image one turn on either side.

``fit_temperature(pseudo_target(predict, images))`` is PseudoCal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.transforms import CenterSpatialCrop
from torch import Tensor

from dacal_med.comparison.calibrators import Prediction
from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError

IGNORED = 255
"""Label of a voxel to leave out, the ``ignore_index`` that fits take by default."""


def pseudo_target_pairs(images: Sequence[Tensor], seed: int = 0) -> list[tuple[int, int]]:
    """Pair each image with another.

    Args:
        images: target images, at least 2.
        seed: which pairs.

    Returns:
        ``(dominant, partner)`` indices, in the order of the dominant images; each image is dominant once and a partner
        once.

    Raises:
        InputError: if there are fewer than 2 images.
    """
    if len(images) < 2:
        raise InputError(f"images for PseudoCal: found {len(images)}, wanted at least 2: each is mixed with another")
    order = np.random.default_rng(seed).permutation(len(images))
    return sorted(zip(order.tolist(), np.roll(order, -1).tolist(), strict=True))


def pseudo_target(
    predict: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    mix: float = 0.65,
    seed: int = 0,
    differing_only: bool = True,
) -> list[Prediction]:
    """Predict mixtures of target images, labelled with the hard prediction of the dominant image.

    Args:
        predict: maps an image ``(1, channels, *spatial)`` to probabilities ``(1, C, *spatial)``, ``C`` at most 255;
            called once for each image and once for each mixture.
        images: ``(1, channels, *spatial)`` each, at least 2; sizes may differ.
        mix: share of the dominant image, in ``(0.5, 1)``.
        seed: which images are mixed.
        differing_only: label :data:`IGNORED` where the predictions of both images agree, as the paper drops pairs of
            the same class; ``False`` keeps every voxel.

    Returns:
        One prediction for each image as the dominant one, in their order, of the smaller size of the pair along each
        axis.

    Raises:
        InputError: if there are fewer than 2 images or ``mix`` is out of range.
    """
    if not 0.5 < mix < 1.0:
        raise InputError(f"mix: found {mix}, wanted above 0.5 and below 1: the dominant image gives the label")
    pairs = pseudo_target_pairs(images, seed)
    classes = [predict(image).argmax(dim=1, keepdim=True).to(torch.uint8) for image in images]
    result = []
    for dominant, partner in pairs:
        size = [min(n) for n in zip(images[dominant].shape[2:], images[partner].shape[2:], strict=True)]
        crop = CenterSpatialCrop(size)
        first, second, label, other = (
            plain(crop(x[0])).unsqueeze(0)
            for x in (images[dominant], images[partner], classes[dominant], classes[partner])
        )
        mixture = mix * first + (1.0 - mix) * second
        if differing_only:
            label = label.masked_fill(label == other, IGNORED)
        result.append(Prediction(predict(mixture), mixture, label))
    return result
