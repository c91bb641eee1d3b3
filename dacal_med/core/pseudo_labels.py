# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels: how teacher logits become labels for the student (hard, soft, fixed or learned temperature)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dacal_med.core.batch import in_parts
from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError

WEIGHTINGS = ("quality", "confidence", "calibrated", "none")


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

    All but ``"calibrated"`` come from the softmax of the unscaled logits, so that labellers differ in their labels
    alone.

    Args:
        threshold: confidence above which a voxel counts, in ``[0, 1)``.
        weighting: ``"quality"``: every voxel weighs its sample's quality; ``"confidence"``: 1 above the threshold, else
            0; ``"calibrated"``: the confidence of the label at its temperature (hard labels: at 1), which estimates how
            likely the teacher's class is right; ``"none"``: 1.
        ignore_top: so many rows at the top of what the teacher sees weigh 0, where pseudo-labels are not trusted
            (DAFormer, arXiv 2111.14887). Rows run along the last axis: pictures are read column by column.
        ignore_bottom: the same at the bottom. Quality counts all rows.

    Raises:
        ValueError: for a threshold out of range or an unknown weighting.
        InputError: for a negative number of rows; when called, if no row is left.
    """

    def __init__(
        self, threshold: float = 0.968, weighting: str = "quality", ignore_top: int = 0, ignore_bottom: int = 0
    ) -> None:
        super().__init__()
        if not 0.0 <= threshold < 1.0:
            raise ValueError(f"threshold: found {threshold}, wanted a number in [0, 1)")
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting: found {weighting!r}, wanted one of {list(WEIGHTINGS)}")
        if ignore_top < 0 or ignore_bottom < 0:
            raise InputError(
                f"labeller: found ignore_top={ignore_top}, ignore_bottom={ignore_bottom}, wanted at least 0"
            )
        self.threshold = threshold
        self.weighting = weighting
        self.ignore_top = ignore_top
        self.ignore_bottom = ignore_bottom

    @property
    def weight_options(self) -> dict[str, Any]:
        """What decides the weights, as arguments of another labeller with the same ones."""
        return {
            "threshold": self.threshold,
            "weighting": self.weighting,
            "ignore_top": self.ignore_top,
            "ignore_bottom": self.ignore_bottom,
        }

    def extra_repr(self) -> str:
        """Return the settings, for printing; ignored rows only where there are any."""
        text = f"threshold={self.threshold}, weighting={self.weighting!r}"
        if self.ignore_top or self.ignore_bottom:
            text += f", ignore_top={self.ignore_top}, ignore_bottom={self.ignore_bottom}"
        return text

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
        probabilities = (logits / temperature).softmax(dim=1)
        weights, quality = self._weights(logits, probabilities.detach())
        return PseudoLabels(probabilities, weights, quality, temperature)

    def forward(self, logits: Tensor, image: Tensor) -> PseudoLabels:
        """Label target images.

        Args:
            logits: ``(B, C, *spatial)`` teacher logits.
            image: ``(B, channels, *spatial)`` target images.
        """
        logits = _logits(logits)
        return self.from_temperature(logits, self.temperature(logits, plain(image)))

    def _weights(self, logits: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return weights ``(B, 1, *spatial)`` and quality ``(B,)``; ``labels`` are the soft ones, if there are any."""
        probabilities = logits.softmax(dim=1)
        quality = quality_weight(probabilities, self.threshold)
        if self.weighting == "quality":
            weights = quality.view(-1, *[1] * (logits.dim() - 1)).expand_as(logits[:, :1])
        elif self.weighting == "confidence":
            weights = (probabilities.amax(dim=1, keepdim=True) > self.threshold).float()
        elif self.weighting == "calibrated":
            weights = (probabilities if labels is None else labels).amax(dim=1, keepdim=True)
        else:
            weights = torch.ones_like(logits[:, :1])
        if self.ignore_top or self.ignore_bottom:
            rows = logits.shape[-1]
            if self.ignore_top + self.ignore_bottom >= rows:
                raise InputError(
                    f"labeller: found ignore_top={self.ignore_top}, ignore_bottom={self.ignore_bottom} for crops of "
                    f"{rows} rows, wanted fewer than that together"
                )
            weights = weights.clone()
            weights[..., : self.ignore_top] = 0.0
            weights[..., rows - self.ignore_bottom :] = 0.0
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
        options: see :class:`PseudoLabeller`.

    Raises:
        ValueError: if the temperature is not positive.
    """

    def __init__(self, temperature: float, **options: Any) -> None:
        super().__init__(**options)
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
        network: maps ``(logits, image)`` to temperatures ``(B, 1, *spatial)`` within ``min_temperature`` and
            ``max_temperature``, relative to ``exp(log_centre)``.
        options: see :class:`PseudoLabeller`.
    """

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(**options)
        self.network = network
        # What the network's output multiplies; what steers the temperature as a whole moves it.
        self.log_centre: Tensor
        self.register_buffer("log_centre", torch.zeros(()))

    def temperature(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the temperature ``(B, 1, *spatial)``: the network's output, with its graph, times the centre."""
        result = self.network(_logits(logits), plain(image))
        assert isinstance(result, Tensor)
        return result * self.log_centre.exp()

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest temperature at the present centre."""
        centre = float(self.log_centre.exp())
        network: Any = self.network
        return network.min_temperature * centre, network.max_temperature * centre


def _logits(logits: Tensor) -> Tensor:
    """Return logits without graph and meta data, in at least float32."""
    logits = plain(logits).detach()
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
