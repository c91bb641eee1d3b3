# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny adaptation runs for tests: bright blobs as source, dark blobs as target, in any number of axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet

from dacal_med.data import PairedDataset, PairedLoader
from dacal_med.engines import AdaptationTrainer, ComplementaryTruth, make_host, make_labeller, make_temperature_learner
from dacal_med.engines.hosts import Host

CLASSES = 3


def blobs(count: int, dims: int, sign: float, seed: int, size: int = 16) -> list[dict[str, torch.Tensor]]:
    """Images ``(1, *spatial)`` of two boxes of different brightness, with labels."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        label = np.zeros((size,) * dims, dtype=np.uint8)
        for value in (1, 2):
            corner = rng.integers(0, size - 6, dims)
            label[tuple(slice(c, c + 5) for c in corner)] = value
        image = 0.5 + sign * 0.2 * label + 0.05 * rng.standard_normal(label.shape)
        items.append({"image": torch.from_numpy(image[None]).float(), "label": torch.from_numpy(label[None])})
    return items


def tiny_network(dims: int, seed: int = 0, **options: Any) -> UNet:
    """A U-Net of a few thousand parameters."""
    torch.manual_seed(seed)
    return UNet(dims, 1, CLASSES, channels=(4, 8), strides=(2,), num_res_units=1, **options)


def tiny_trainer(
    dims: int = 2,
    host: str | Host = "dacs",
    labeller: str = "learned",
    handlers: tuple[Any, ...] = (),
    max_epochs: int = 3,
    epoch_length: int = 3,
    warmup_epochs: int = 1,
    complement: str = "hard",
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 2,
    meta: dict[str, Any] | None = None,
    objective: ComplementaryTruth | None = None,
    held_out: int = 2,
    make_optimizer: Any = torch.optim.AdamW,
    make_network: Any = None,
    **options: Any,
) -> AdaptationTrainer:
    """A trainer on tiny data; every piece is seeded."""
    dataset = PairedDataset(blobs(6, dims, 1.0, 1), blobs(5, dims, -1.0, 2), blobs(held_out, dims, 1.0, 3))
    loader = PairedLoader(dataset, batch_size, epoch_length, rank=rank, world_size=world_size)
    network = (tiny_network if make_network is None else make_network)(dims)
    optimizer = make_optimizer(network.parameters(), lr=1e-3)
    torch.manual_seed(7)
    label = make_labeller(labeller, CLASSES, 1, dims, threshold=0.3)
    learner = make_temperature_learner(label, network, optimizer, objective, **{"every": 2, **(meta or {})})
    if isinstance(host, str):
        host = make_host(host, **({"complement": complement} if host == "dacs" else {}))
    return AdaptationTrainer(
        "cpu",
        max_epochs,
        loader,
        network,
        optimizer,
        CLASSES,
        host,
        label,
        learner,
        warmup_epochs=warmup_epochs,
        train_handlers=list(handlers),
        **options,
    )


def weights(trainer: AdaptationTrainer) -> torch.Tensor:
    """Student, teacher and labeller as one vector, buffers (batch-norm statistics, ``log_centre``) included."""
    modules = (trainer.network, trainer.teacher.network, trainer.labeller)
    return torch.cat([value.detach().flatten() for module in modules for value in module.state_dict().values()])
