# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Local temperature scaling (LTS): a temperature for each voxel (Ding et al., ICCV 2021, arXiv 2008.05105).

The paper's: a small convolutional network of logits and image gives a temperature per voxel and is trained by NLL on
held-out predictions with Adam. Ours: the network is :class:`~dacal_med.core.temperature.MetaTemperatureNetwork`, so
that a comparison with DA-Cal is one of what temperatures are trained for, not of layers; it sees probabilities no lower
than :data:`FLOOR`; it is trained on random crops, with clipped gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from dacal_med.comparison.calibrators import (
    TEMPERATURES,
    Prediction,
    count_labelled,
    labelled,
    log_probabilities,
)
from dacal_med.core.temperature import MetaTemperatureNetwork
from dacal_med.core.tensors import plain

FLOOR = 1e-6
"""Probabilities are lifted to it for the network to see: with zeros at -87 its features would be of any magnitude."""


@dataclass(frozen=True)
class LocalTemperatureScaling:
    """A temperature for each voxel: ``softmax(log p / T(p, image))``; the predicted class stays.

    Attributes:
        network: maps log-probabilities and image to temperatures.
        summary: mean, least and largest temperature of the voxels fitted on.
    """

    network: MetaTemperatureNetwork
    summary: dict[str, float]

    @torch.no_grad()
    def __call__(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Return calibrated probabilities; the network moves to where they are."""
        self.network.to(probabilities.device)
        return (log_probabilities(probabilities) / _temperatures(self.network, probabilities, image)).softmax(dim=1)

    def describe(self) -> dict[str, float | list[float]]:
        """Return ``temperature_mean``, ``temperature_min`` and ``temperature_max`` over the voxels fitted on."""
        return {**self.summary}


def fit_local_temperature(
    predictions: Sequence[Prediction],
    *,
    ignore_index: int | None = 255,
    max_voxels: int = 16_384,
    seed: int = 0,
    steps: int = 400,
    learning_rate: float = 0.005,
) -> LocalTemperatureScaling:
    """Train a temperature network by NLL from ``T = 1``, within the bounds that a single temperature has.

    Args:
        predictions: images to fit on, on one device, where it trains.
        ignore_index: label that is left out; ``None`` for none.
        max_voxels: voxels of a crop at most, one crop a step; its sides are equal unless an image is smaller.
        seed: initial weights and crops; the global random state stays as it was.
        steps: updates.
        learning_rate: of Adam at the start, falling to 0 along a cosine.

    Returns:
        The calibrator.

    Raises:
        InputError: if there is nothing to fit on, or it cannot be probabilities and labels.
    """
    counts = count_labelled(predictions, ignore_index, max_voxels)
    first = predictions[0].probabilities
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        network = MetaTemperatureNetwork(
            num_classes=first.shape[1],
            in_channels=predictions[0].image.shape[1],
            spatial_dims=first.dim() - 2,
            min_temperature=TEMPERATURES[0],
            max_temperature=TEMPERATURES[1],
            inputs=("logits", "image"),
        ).to(first.device)
        optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for crop in _crops(predictions, counts, ignore_index, max_voxels, steps, seed):
            temperatures = _temperatures(network, crop.probabilities, crop.image)
            loss = _nll(log_probabilities(crop.probabilities) / temperatures, crop.label, ignore_index)
            optimizer.zero_grad()
            loss.backward()
            # Without it a crop of confident errors can throw the map to a bound, where its gradient is 0 for good.
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
            optimizer.step()
            schedule.step()
    return LocalTemperatureScaling(network, _summary(network, predictions, ignore_index))


def _temperatures(network: MetaTemperatureNetwork, probabilities: Tensor, image: Tensor) -> Tensor:
    return network(plain(probabilities).float().clamp_min(FLOOR).log(), plain(image).float())


def _nll(logits: Tensor, label: Tensor, ignore_index: int | None) -> Tensor:
    # -100 is no class, as is PyTorch's default.
    return functional.cross_entropy(
        logits, plain(label)[:, 0].long(), ignore_index=-100 if ignore_index is None else ignore_index
    )


def _crops(
    predictions: Sequence[Prediction],
    counts: Sequence[int],
    ignore_index: int | None,
    max_voxels: int,
    steps: int,
    seed: int,
) -> Iterator[Prediction]:
    """Yield crops, each with a labelled voxel that is drawn uniformly from those of all images."""
    generator = np.random.default_rng(seed)
    shares = generator.multinomial(steps, np.array(counts) / sum(counts))
    places = []
    for number, (prediction, share) in enumerate(zip(predictions, shares, strict=True)):
        label = plain(prediction.label)
        if share:
            flat = labelled(label, ignore_index).flatten().nonzero()[:, 0].cpu().numpy()
            drawn = flat[generator.integers(counts[number], size=share)]
            places += [(number, np.unravel_index(int(index), label.shape)) for index in drawn]
    for k in generator.permutation(len(places)):
        number, (row, _, *voxel) = places[k]
        prediction = predictions[number]
        size = prediction.image.shape[2:]
        side = max(1, int(max_voxels ** (1 / len(size)) + 1e-9))
        # Anywhere inside the image that contains the voxel.
        starts = [
            int(generator.integers(max(0, at - side + 1), max(0, min(at, n - side)) + 1))
            for at, n in zip(voxel, size, strict=True)
        ]
        box = (slice(int(row), int(row) + 1), slice(None), *(slice(s, s + side) for s in starts))
        yield Prediction(prediction.probabilities[box], prediction.image[box], prediction.label[box])


@torch.no_grad()
def _summary(
    network: MetaTemperatureNetwork, predictions: Sequence[Prediction], ignore_index: int | None
) -> dict[str, float]:
    total, count, low, high = 0.0, 0, np.inf, 0.0
    for prediction in predictions:
        temperatures = _temperatures(network, prediction.probabilities, prediction.image)
        temperatures = temperatures[labelled(plain(prediction.label), ignore_index)]
        if temperatures.numel():
            total += float(temperatures.sum(dtype=torch.float64))
            count += temperatures.numel()
            low, high = min(low, float(temperatures.min())), max(high, float(temperatures.max()))
    return {"temperature_mean": total / count, "temperature_min": low, "temperature_max": high}
