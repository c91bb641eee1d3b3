# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Adaptation runs on synthetic images in memory, for the scripts that measure the engine itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet
from torch import nn

from dacal_med.core.mixing import BoxMask
from dacal_med.data import PairedDataset, PairedLoader
from dacal_med.engines import (
    AdaptationTrainer,
    dice_cross_entropy,
    make_host,
    make_labeller,
    make_temperature_learner,
)

Item = dict[str, torch.Tensor]


def boxes(count: int, size: Sequence[int], classes: int, sign: float, seed: int) -> list[Item]:
    """Images ``(1, *size)`` with a box of its own brightness for each class, and their labels.

    Args:
        count: number of images.
        size: of an image.
        classes: number of classes, background included.
        sign: 1 for bright boxes, -1 for dark ones: the two domains.
        seed: of the random positions.
    """
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        label = np.zeros(tuple(size), dtype=np.uint8)
        for value in range(1, classes):
            corner = [int(rng.integers(0, max(1, n - n // 3))) for n in size]
            label[tuple(slice(c, c + n // 3) for c, n in zip(corner, size, strict=True))] = value
        image = 0.5 + sign * 0.4 * label / classes + 0.05 * rng.standard_normal(label.shape)
        items.append({"image": torch.from_numpy(image[None]).float(), "label": torch.from_numpy(label[None])})
    return items


def unet(dims: int, classes: int, channels: Sequence[int] = (8, 16, 32, 64)) -> nn.Module:
    """The U-Net of the bundles, of any width."""
    torch.manual_seed(0)
    return UNet(dims, 1, classes, tuple(channels), (2,) * (len(channels) - 1), num_res_units=2)


def make_trainer(
    network: nn.Module,
    size: Sequence[int],
    classes: int,
    *,
    batch_size: int = 2,
    epoch_length: int = 4,
    max_epochs: int = 2,
    warmup_epochs: int = 0,
    every: int = 4,
    images: int = 4,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
) -> AdaptationTrainer:
    """A trainer with the bundles' defaults, but for settling and feedback, which ``options`` may add.

    That is: soft labels on both mixes, learned temperature, AdamW.

    Args:
        network: the student.
        size: of the images.
        classes: number of classes.
        batch_size: images of each domain in an iteration.
        epoch_length: iterations in an epoch.
        max_epochs: number of epochs.
        warmup_epochs: of them on source alone.
        every: iterations between meta-steps.
        images: of each domain.
        device: where to train.
        options: further arguments of :class:`AdaptationTrainer`.
    """
    domains = [boxes(images, size, classes, sign, seed) for seed, sign in enumerate((1.0, -1.0, 1.0), start=1)]
    loader = PairedLoader(PairedDataset(*domains), batch_size, epoch_length)
    network = network.to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    torch.manual_seed(1)
    labeller = make_labeller("learned", classes, 1, len(size), threshold=0.3, device=device)
    return AdaptationTrainer(
        device,
        max_epochs,
        loader,
        network,
        optimizer,
        classes,
        make_host("dacs", complement="same", mask_generator=BoxMask()),
        labeller,
        make_temperature_learner(labeller, network, optimizer, every=every),
        truth_loss_function=dice_cross_entropy,
        warmup_epochs=warmup_epochs,
        max_gradient_norm=1.0,
        **(options or {}),
    )
