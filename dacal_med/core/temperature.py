# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The Meta Temperature Network: one temperature per voxel from what the teacher says (DA-Cal, arXiv 2602.20860).

That a network gives a temperature per pixel is the paper's; its layers, bounds and resolution here are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from dacal_med.core.tensors import INTERPOLATIONS, plain

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
INPUTS = ("logits", "confidence", "entropy", "image")


class MetaTemperatureNetwork(nn.Module):
    """A small convolutional network from what the teacher says, and the image, to a temperature map.

    The map is bounded in the log domain: with output ``o``, ``log T = log(max) * tanh(o / log(max))`` for ``o >= 0``
    and ``log(min) * tanh(o / log(min))`` below, which has slope 1 at 0, so that a fresh network (last layer zero) gives
    exactly 1 whatever the bounds. It exists in training only.

    Args:
        num_classes: classes of the logits, at least 2.
        in_channels: channels of the image.
        spatial_dims: number of spatial axes.
        hidden_channels: width.
        scale: resolution at which it computes, relative to the image; the map is interpolated back.
        min_temperature: lower bound, in ``(0, 1)``.
        max_temperature: upper bound, above 1.
        num_layers: convolutions, at least 2.
        inputs: what it sees, of ``"logits"`` (log-probabilities of all classes), ``"confidence"`` (log-probability of
            the most probable one), ``"entropy"`` (relative to that of a uniform guess) and ``"image"``. With the
            first two alone (default) no class has a temperature of its own, which would act as a bias between classes.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 1,
        spatial_dims: int = 3,
        hidden_channels: int = 8,
        scale: float = 0.5,
        min_temperature: float = 0.25,
        max_temperature: float = 4.0,
        num_layers: int = 3,
        inputs: Sequence[str] = ("confidence", "entropy"),
    ) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes: found {num_classes}, wanted at least 2: temperatures scale a softmax")
        if spatial_dims not in _CONVOLUTIONS:
            raise ValueError(f"spatial_dims: found {spatial_dims}, wanted one of {list(_CONVOLUTIONS)}")
        if in_channels < 1 or hidden_channels < 1 or num_layers < 2 or not 0.0 < scale <= 1.0:
            raise ValueError(
                f"found in_channels={in_channels}, hidden_channels={hidden_channels}, num_layers={num_layers}, "
                f"scale={scale}; wanted at least 1, 1, 2 and a scale in (0, 1]"
            )
        if not 0.0 < min_temperature < 1.0 < max_temperature:
            raise ValueError(
                f"found min_temperature={min_temperature}, max_temperature={max_temperature}; wanted 0 < min < 1 < max"
            )
        if not inputs or len(set(inputs)) != len(inputs) or not set(inputs) <= set(INPUTS):
            raise ValueError(f"inputs: found {list(inputs)}, wanted at least one of {list(INPUTS)}, each once")
        self.inputs = tuple(inputs)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.scale = scale
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self._interpolation = INTERPOLATIONS[spatial_dims]
        convolution = _CONVOLUTIONS[spatial_dims]
        channels = {"logits": num_classes, "confidence": 1, "entropy": 1, "image": in_channels}
        widths = [sum(channels[name] for name in self.inputs), *[hidden_channels] * (num_layers - 1)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [convolution(before, after, 3, padding=1), nn.LeakyReLU(0.1)]
        last = convolution(hidden_channels, 1, 1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the temperature map.

        Args:
            logits: ``(B, C, *spatial)`` teacher logits; no gradient flows into them.
            image: ``(B, channels, *spatial)``.

        Returns:
            ``(B, 1, *spatial)``, float32 (float64 for float64 logits), within the bounds.

        Raises:
            ValueError: if the channels do not fit.
        """
        if logits.shape[1] != self.num_classes or image.shape[1] != self.in_channels:
            raise ValueError(
                f"found {logits.shape[1]} logit and {image.shape[1]} image channels, "
                f"wanted {self.num_classes} and {self.in_channels}"
            )
        logits, image = plain(logits).detach(), plain(image).detach()
        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        features = torch.cat([self._input(name, logits, image) for name in self.inputs], dim=1)
        features = features.to(next(self.parameters()).dtype)
        size = tuple(features.shape[2:])
        reduced = tuple(max(1, math.ceil(n * self.scale)) for n in size)
        if reduced != size:
            features = functional.interpolate(features, size=reduced, mode="area")
        output = self.layers(features).to(logits.dtype)
        if reduced != size:
            output = functional.interpolate(output, size=size, mode=self._interpolation, align_corners=False)
        return self._bounded(output).exp()

    @staticmethod
    def _input(name: str, logits: Tensor, image: Tensor) -> Tensor:
        if name == "image":
            return image.to(logits.dtype)
        log_p = logits.log_softmax(dim=1)
        if name == "confidence":
            return log_p.amax(dim=1, keepdim=True)
        if name == "entropy":
            return -(log_p.exp() * log_p).sum(dim=1, keepdim=True) / math.log(logits.shape[1])
        return log_p

    def _bounded(self, output: Tensor) -> Tensor:
        high, low = math.log(self.max_temperature), math.log(self.min_temperature)
        return torch.where(output >= 0, high * torch.tanh(output / high), low * torch.tanh(output / low))
