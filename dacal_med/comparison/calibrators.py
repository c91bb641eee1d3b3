# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Post-hoc calibrators of class probabilities: temperature and vector scaling (Guo et al., ICML 2017, 1706.04599).

They act on the averaged probabilities of whole images, so that one pass of predictions serves every calibrator. With
windows averaged there are no logits; log-probabilities take their place, which differ from logits by a constant per
voxel where windows do not overlap, so that softmax gives the same.

Both negative log-likelihoods (NLL) are convex, in ``1 / T`` and in weight and bias, and are minimised in float64 over
the probabilities as they are. netcal 1.4.0 serves the tests only: it lifts probabilities to 2.2e-16, which moves the
temperature of confident networks, and returns ``T = 1`` for any float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor
from torch.nn import functional

from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError

MAX_VOXELS = 500_000
TEMPERATURES = (0.05, 20.0)
"""Where a temperature is looked for: labels that agree with every prediction, or with none, have no finite best one."""


@dataclass(frozen=True)
class Prediction:
    """What a network predicts for one image, and the truth (or what stands for it).

    Attributes:
        probabilities: ``(B, C, *spatial)`` float32, summing to 1 over ``C``.
        image: ``(B, channels, *spatial)``, as the network sees it.
        label: ``(B, 1, *spatial)`` classes, any integer type; voxels with the ``ignore_index`` of a fit are left out.
    """

    probabilities: Tensor
    image: Tensor
    label: Tensor


class Calibrator(Protocol):
    """Corrects the class probabilities of whole images."""

    def __call__(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Return calibrated probabilities.

        Args:
            probabilities: ``(B, C, *spatial)``, summing to 1 over ``C``.
            image: ``(B, channels, *spatial)``.

        Returns:
            ``(B, C, *spatial)`` float32, summing to 1 over ``C``.
        """
        ...

    def describe(self) -> dict[str, float | list[float]]:
        """Return what was fitted, by name, ready for JSON."""
        ...


@dataclass(frozen=True)
class TemperatureScaling:
    """One temperature for all voxels: ``softmax(log p / T)``; the predicted class stays.

    Attributes:
        temperature: ``T``, positive; above 1 lowers confidence.
    """

    temperature: float

    def __call__(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Return calibrated probabilities; the image plays no part."""
        return (log_probabilities(probabilities) / self.temperature).softmax(dim=1)

    def describe(self) -> dict[str, float | list[float]]:
        """Return ``temperature``."""
        return {"temperature": self.temperature}


@dataclass(frozen=True)
class VectorScaling:
    """A weight and a bias for each class: ``softmax(weight * log p + bias)``; the predicted class may change.

    Attributes:
        weight: by class.
        bias: by class; a constant added to all changes nothing.
    """

    weight: tuple[float, ...]
    bias: tuple[float, ...]

    def __call__(self, probabilities: Tensor, image: Tensor) -> Tensor:
        """Return calibrated probabilities; the image plays no part."""
        logits = log_probabilities(probabilities)
        shape = (1, -1, *[1] * (logits.dim() - 2))
        weight, bias = (logits.new_tensor(x).view(shape) for x in (self.weight, self.bias))
        return (weight * logits + bias).softmax(dim=1)

    def describe(self) -> dict[str, float | list[float]]:
        """Return ``weight`` and ``bias``, by class."""
        return {"weight": list(self.weight), "bias": list(self.bias)}


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Return log-probabilities, float32, finite where a probability is 0.

    Args:
        probabilities: any shape, tensor with or without meta data.

    Returns:
        The logarithm of the probability or of the smallest normal float32 (about -87), whichever is larger: the floor
        that :class:`~dacal_med.core.statistics.SegmentationStatistics` gives the NLL of float32 probabilities.
    """
    return plain(probabilities).float().clamp_min(torch.finfo(torch.float32).tiny).log()


def fit_temperature(
    predictions: Sequence[Prediction],
    *,
    ignore_index: int | None = 255,
    max_voxels: int = MAX_VOXELS,
    seed: int = 0,
) -> TemperatureScaling:
    """Fit the temperature, within :data:`TEMPERATURES`, that minimises the NLL.

    Args:
        predictions: images to fit on.
        ignore_index: label that is left out; ``None`` for none.
        max_voxels: voxels to fit on at most, drawn as by :func:`sample_voxels`.
        seed: which voxels are drawn.

    Returns:
        The calibrator.

    Raises:
        InputError: if there is nothing to fit on, or it cannot be probabilities and labels.
    """
    return TemperatureScaling(_best_temperature(*sample_voxels(predictions, ignore_index, max_voxels, seed)))


def fit_vector(
    predictions: Sequence[Prediction],
    *,
    ignore_index: int | None = 255,
    max_voxels: int = MAX_VOXELS,
    seed: int = 0,
) -> VectorScaling:
    """Fit the weights and biases that minimise the NLL, starting from the best temperature.

    A class that no drawn voxel has keeps weight ``1 / T`` and the bias 0 before biases are centred (our choice): its
    best bias would be minus infinity, a probability of exactly 0 wherever that class does occur.

    Args:
        predictions: images to fit on.
        ignore_index: label that is left out; ``None`` for none.
        max_voxels: voxels to fit on at most, drawn as by :func:`sample_voxels`.
        seed: which voxels are drawn.

    Returns:
        The calibrator, its biases summing to 0; its NLL on the drawn voxels is at most that of
        :func:`fit_temperature`.

    Raises:
        InputError: if there is nothing to fit on, or it cannot be probabilities and labels.
    """
    logits, labels = sample_voxels(predictions, ignore_index, max_voxels, seed)
    classes = logits.shape[1]
    start = torch.zeros(2, classes, dtype=torch.float64)
    start[0] = 1.0 / _best_temperature(logits, labels)
    present = torch.bincount(labels, minlength=classes) > 0

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight, bias = torch.from_numpy(parameters).view(2, classes)
        scaled = logits * weight + bias
        value = functional.cross_entropy(scaled, labels)
        # Written out: the gradient of the mean NLL in the scaled logits is softmax minus one-hot, over the voxels.
        slope = scaled.softmax(dim=1)
        slope[torch.arange(len(labels)), labels] -= 1.0
        gradient = torch.stack([(slope * logits).mean(dim=0), slope.mean(dim=0)])
        return float(value), (gradient * present).flatten().numpy()

    options = {"ftol": 1e-12, "gtol": 1e-7, "maxiter": 500}
    best = optimize.minimize(loss, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = best.x.reshape(2, classes)
    return VectorScaling(tuple(weight.tolist()), tuple((bias - bias.mean()).tolist()))


def sample_voxels(
    predictions: Sequence[Prediction], ignore_index: int | None, max_voxels: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Draw voxels at random without replacement, from each image in proportion to its voxels that are not ignored.

    Args:
        predictions: images with the same classes.
        ignore_index: label that is left out; ``None`` for none.
        max_voxels: how many at most; all if there are fewer.
        seed: which ones.

    Returns:
        Log-probabilities ``(N, C)`` float64 and labels ``(N,)`` int64, on the CPU.

    Raises:
        InputError: if there is no voxel, shapes do not fit, a label is no class, or the values are no probabilities.
    """
    counts = count_labelled(predictions, ignore_index, max_voxels)
    total = sum(counts)
    wanted = min(max_voxels, total)
    generator = np.random.default_rng(seed)
    # Shares that are rounded cumulatively add up to what is wanted.
    shares = [b - a for a, b in pairwise(c * wanted // total for c in accumulate(counts, initial=0))]
    logits, labels = [], []
    for prediction, count, share in zip(predictions, counts, shares, strict=True):
        label = plain(prediction.label).flatten()
        chosen = torch.from_numpy(generator.choice(count, share, replace=False, shuffle=False))
        kept = labelled(label, ignore_index).nonzero()[:, 0][chosen.to(label.device)]
        probabilities = plain(prediction.probabilities).movedim(1, -1).flatten(0, -2)[kept]
        logits.append(log_probabilities(probabilities).double().cpu())
        labels.append(label[kept].long().cpu())
    return torch.cat(logits), torch.cat(labels)


def labelled(label: Tensor, ignore_index: int | None) -> Tensor:
    """Return where a label, of any shape, is not the ignored one."""
    return torch.ones_like(label, dtype=torch.bool) if ignore_index is None else label.long() != ignore_index


def count_labelled(predictions: Sequence[Prediction], ignore_index: int | None, max_voxels: int) -> list[int]:
    """Check what a calibrator is to be fitted on.

    Returns:
        How many voxels of each image are not ignored.

    Raises:
        InputError: if there is no such voxel, shapes do not fit, a label is no class, or the values are no
            probabilities.
    """
    counts = [_checked_count(number, predictions[0], p, ignore_index) for number, p in enumerate(predictions)]
    if sum(counts) == 0 or max_voxels < 1:
        raise InputError(
            f"nothing to fit a calibrator on: found {sum(counts)} labelled voxels (ignore_index={ignore_index}) in "
            f"{len(predictions)} images and max_voxels={max_voxels}, wanted at least 1 of each"
        )
    return counts


def _checked_count(number: int, first: Prediction, prediction: Prediction, ignore_index: int | None) -> int:
    shape, classes, channels = prediction.probabilities.shape, first.probabilities.shape[1], first.image.shape[1]
    wanted = [(shape[0], n, *shape[2:]) for n in (classes, channels, 1)]
    found = [tuple(x.shape) for x in (prediction.probabilities, prediction.image, prediction.label)]
    if found != wanted:
        raise InputError(f"prediction {number}: found probabilities, image and label of {found}, wanted {wanted}")
    low, high = (float(x) for x in plain(prediction.probabilities).aminmax())
    # NaN fails both comparisons.
    if not (low >= 0.0 and high <= 1.0 + 1e-4):
        raise InputError(f"prediction {number}: found probabilities of {low} to {high}, wanted 0 to 1 (softmax first)")
    label = plain(prediction.label)
    values = label[labelled(label, ignore_index)].long()
    if bool(((values < 0) | (values >= classes)).any()):
        raise InputError(
            f"prediction {number}: found labels {values.unique().tolist()}, wanted 0 to {classes - 1} or "
            f"ignore_index={ignore_index}"
        )
    return values.numel()


def _best_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature of the least NLL: unimodal in ``log T``, as it is convex in ``1 / T``."""

    def loss(log_temperature: float) -> float:
        return float(functional.cross_entropy(logits * float(np.exp(-log_temperature)), labels))

    best = optimize.minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(best.x))
