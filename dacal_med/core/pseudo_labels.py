# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: how teacher logits become labels for the student (hard, soft, fixed or learned temperature)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from dacal_med.core.batch import in_parts
from dacal_med.core.tensors import plain

WEIGHTINGS = ("quality", "confidence", "none")


@dataclass(frozen=True)
class PseudoLabels:
    """What supervises target images.

    Attributes:
        probabilities: ``(B, C, *spatial)`` targets, one-hot where hard.
        weights: ``(B, 1, *spatial)``.
        quality: ``(B,)`` share of confident voxels of each sample.
        temperature: ``(B, 1, *spatial)``, or ``None`` for hard labels.
    """

    probabilities: Tensor
    weights: Tensor
    quality: Tensor
    temperature: Tensor | None = None

    def in_parts(self, parts: int) -> list[PseudoLabels]:
        """Return ``parts`` batches of the same size, in order; see :func:`dacal_med.core.batch.in_parts`."""
        probabilities, weights, quality = (in_parts(t, parts) for t in (self.probabilities, self.weights, self.quality))
        temperatures = [None] * parts if self.temperature is None else in_parts(self.temperature, parts)
        return [PseudoLabels(*part) for part in zip(probabilities, weights, quality, temperatures, strict=True)]


def quality_weight(probabilities: Tensor, threshold: float) -> Tensor:
    """Share of voxels whose largest probability exceeds ``threshold`` (DACS, arXiv 2007.08702).

    Args:
        probabilities: ``(B, C, *spatial)``.
        threshold: in ``[0, 1)``.

    Returns:
        ``(B,)`` in ``[0, 1]``.
    """
    return (probabilities.amax(dim=1) > threshold).flatten(1).float().mean(dim=1)


class PseudoLabeller(nn.Module):
    """Base of all pseudo-labellers: weights from the raw teacher, labels from a temperature.

    Quality and confidence always come from the softmax of the unscaled logits, so that labellers differ in their labels
    alone.

    Args:
        threshold: confidence above which a voxel counts, in ``[0, 1)``.
        weighting: ``"quality"``: every voxel weighs its sample's quality; ``"confidence"``: 1 above the threshold, else
            0; ``"none"``: 1.

    Raises:
        ValueError: for a threshold out of range or an unknown weighting.
    """

    def __init__(self, threshold: float = 0.968, weighting: str = "quality") -> None:
        super().__init__()
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"threshold: found {threshold}, wanted a number in [0, 1)")
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: found {weighting!r}, wanted one of {list(WEIGHTINGS)}")
        self.threshold = threshold
        self.weighting = weighting

    def extra_repr(self) -> str:
        """Return the settings, for printing."""
        return f"threshold={self.threshold}, weighting={self.weighting!r}"

    def temperature(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the temperature ``(B, 1, *spatial)`` for teacher logits ``(B, C, *spatial)``."""
        return torch.ones_like(logits[:, :1])

    def from_temperature(self, logits: Tensor, temperature: Tensor) -> PseudoLabels:
        """Label with a given temperature; gradients flow into it alone.

        Args:
            logits: ``(B, C, *spatial)``, detached here.
            temperature: ``(B, 1, *spatial)``, positive.
        """
        logits = _logits(logits)
        weights, quality = self._weights(logits)
        return PseudoLabels((logits / temperature).softmax(dim=1), weights, quality, temperature)

    def forward(self, logits: Tensor, image: Tensor) -> PseudoLabels:
        """Label target images.

        Args:
            logits: ``(B, C, *spatial)`` teacher logits.
            image: ``(B, channels, *spatial)`` target images.
        """
        logits = _logits(logits)
        return self.from_temperature(logits, self.temperature(logits, plain(image)))

    def _weights(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = logits.softmax(dim=1)
        quality = quality_weight(probabilities, self.threshold)
        if self.weighting == "quality":
            weights = quality.view(-1, *[1] * (logits.dim() - 1)).expand_as(logits[:, :1])
        elif self.weighting == "confidence":
            weights = (probabilities.amax(dim=1, keepdim=True) > self.threshold).float()
        else:
            weights = torch.ones_like(logits[:, :1])
        return weights, quality


class HardLabels(PseudoLabeller):
    """The teacher's most probable class, as in DACS: the limit of the temperature going to 0."""

    def forward(self, logits: Tensor, image: Tensor) -> PseudoLabels:
        """Label target images with one-hot targets; see :class:`PseudoLabeller`."""
        logits = _logits(logits)
        weights, quality = self._weights(logits)
        one_hot = functional.one_hot(logits.argmax(dim=1), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
        return PseudoLabels(one_hot, weights, quality)


class SoftLabels(PseudoLabeller):
    """The teacher's probabilities as they are: temperature 1."""


class FixedTemperature(PseudoLabeller):
    """The teacher's probabilities at one temperature for all voxels.

    Args:
        temperature: above 0; above 1 softens.
        threshold: see :class:`PseudoLabeller`.
        weighting: see :class:`PseudoLabeller`.

    Raises:
        ValueError: if the temperature is not positive.
    """

    def __init__(self, temperature: float, threshold: float = 0.968, weighting: str = "quality") -> None:
        super().__init__(threshold, weighting)
        if not temperature > 0.0:
            raise ValueError(f"temperature: found {temperature}, wanted a positive number")
        self.fixed = float(temperature)

    def extra_repr(self) -> str:
        """Return the settings, for printing."""
        return f"temperature={self.fixed}, {super().extra_repr()}"

    def temperature(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the fixed temperature for every voxel."""
        return torch.full_like(logits[:, :1], self.fixed)


class LearnedTemperature(PseudoLabeller):
    """The teacher's probabilities at a temperature per voxel, from a network that is trained by the bi-level step.

    Args:
        network: maps ``(logits, image)`` to temperatures ``(B, 1, *spatial)``.
        threshold: see :class:`PseudoLabeller`.
        weighting: see :class:`PseudoLabeller`.
    """

    def __init__(self, network: nn.Module, threshold: float = 0.968, weighting: str = "quality") -> None:
        super().__init__(threshold, weighting)
        self.network = network

    def temperature(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the network's temperature ``(B, 1, *spatial)``, with its graph."""
        result = self.network(_logits(logits), plain(image))
        assert isinstance(result, Tensor)
        return result


def _logits(logits: Tensor) -> Tensor:
    """Return logits without graph and meta data, in at least float32."""
    logits = plain(logits).detach()
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
