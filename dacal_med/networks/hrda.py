# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""HRDA: a network that sees the whole image coarsely and a part of it finely, and learns which to trust where."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Protocol, runtime_checkable

import torch
from monai.networks.layers.factories import Conv, Pool
from torch import Tensor, nn
from torch.nn import functional

from dacal_med.core.tensors import INTERPOLATIONS, plain
from dacal_med.io.errors import InputError
from dacal_med.networks.converting import is_converting


@dataclass(frozen=True)
class AuxiliaryOutput:
    """A prediction of a part of the image that is supervised beside the network's own.

    Attributes:
        logits: ``(B, C, *window)``.
        window: where the part lies, one slice for each spatial axis.
        weight: its share of the loss; the network's own output has what is left of 1.
    """

    logits: Tensor
    window: tuple[slice, ...]
    weight: float


@runtime_checkable
class HasAuxiliaryOutputs(Protocol):
    """A network with auxiliary outputs."""

    def auxiliary_outputs(self) -> AbstractContextManager[list[AuxiliaryOutput]]:
        """Collect the auxiliary outputs of the forward passes inside the context, in training mode."""
        ...


class ScaleAttention(nn.Module):
    """Says for each class and cell of the context how far the detail is to be trusted.

    A fresh head (last layer zero) gives 0.5 everywhere.

    Args:
        num_classes: number of classes.
        in_channels: image channels.
        spatial_dims: number of axes.
        hidden_channels: width.
    """

    def __init__(self, num_classes: int, in_channels: int, spatial_dims: int, hidden_channels: int = 16) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        last = convolution(hidden_channels, num_classes, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(
            convolution(num_classes + in_channels, hidden_channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            convolution(hidden_channels, hidden_channels, 3, padding=1),
            nn.LeakyReLU(0.1),
            last,
        )

    def forward(self, logits: Tensor, image: Tensor) -> Tensor:
        """Return the attention ``(B, C, *cells)`` in ``(0, 1)``.

        Args:
            logits: ``(B, C, *cells)`` of the context.
            image: ``(B, channels, *cells)``, the context.
        """
        attention = self.layers(torch.cat([logits.log_softmax(dim=1), image], dim=1)).sigmoid()
        assert isinstance(attention, Tensor)
        return attention


class HRDA(nn.Module):
    r"""Multi-resolution prediction (HRDA, Hoyer, Dai, Van Gool, ECCV 2022, arXiv 2204.13132) around any network.

    The *context* is the image, coarser by ``scale``; the *detail* is a part of the image at full resolution with as
    many voxels as the context. One network predicts both; a scale attention ``a`` is learned from the context, and with
    ``up`` for linear interpolation the prediction is

    .. math:: up((1 - a) \cdot z_{context}) + up(a) \cdot z_{detail}.

    Training, one random detail crop is seen and the attention is 0 outside it; its position is drawn from torch's
    global generator, which the engine seeds. In eval mode detail windows slide over the whole image and nothing is
    random, so that pseudo-labels come from the fused prediction everywhere.

    Args:
        network: maps ``(B, in_channels, *cells)`` to logits ``(B, num_classes, *cells)``.
        num_classes: number of classes.
        in_channels: image channels.
        spatial_dims: number of axes.
        scale: how much coarser the context is, at least 2; also how much of each axis the detail shows, 1 / scale.
        detail_weight: share of the loss of the detail alone, in ``[0, 1)``.
        hidden_channels: width of the scale attention.
        overlap: of neighbouring detail windows in eval mode, as a share of the window, in ``[0, 1)``.
        window_batch_size: detail windows predicted at once in eval mode; TorchScript, ``torch.export`` and ONNX predict
            all at once.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        num_classes: int,
        in_channels: int,
        spatial_dims: int,
        scale: int = 2,
        detail_weight: float = 0.1,
        hidden_channels: int = 16,
        overlap: float = 0.5,
        window_batch_size: int = 4,
    ) -> None:
        super().__init__()
        if spatial_dims not in INTERPOLATIONS:
            raise InputError(f"network_def#spatial_dims: found {spatial_dims}, wanted one of {list(INTERPOLATIONS)}")
        if scale < 2 or not 0.0 <= overlap < 1.0 or window_batch_size < 1:
            raise InputError(
                f"network_def: found scale={scale}, overlap={overlap}, window_batch_size={window_batch_size}; "
                "wanted at least 2, [0, 1) and at least 1"
            )
        if not 0.0 <= detail_weight < 1.0:
            raise InputError(f"network_def#detail_weight: found detail_weight={detail_weight}, wanted [0, 1)")
        self.network = network
        self.attention = ScaleAttention(num_classes, in_channels, spatial_dims, hidden_channels)
        self.num_classes = num_classes
        self.spatial_dims = spatial_dims
        self.scale = scale
        self.detail_weight = detail_weight
        self.overlap = overlap
        self.window_batch_size = window_batch_size
        self._mode = INTERPOLATIONS[spatial_dims]
        self._coarser = Pool[Pool.AVG, spatial_dims](scale)
        # As many on each axis of any image, so that a graph of one size serves others.
        self._windows = math.ceil((scale - 1) / (1.0 - overlap) - 1e-9) + 1
        self._recorded: list[AuxiliaryOutput] | None = None

    @contextmanager
    def auxiliary_outputs(self) -> Iterator[list[AuxiliaryOutput]]:
        """Collect the detail's logits of the forward passes inside the context, in training mode."""
        self._recorded = []
        try:
            yield self._recorded
        finally:
            self._recorded = None

    def forward(self, image: Tensor) -> Tensor:
        """Return the fused logits.

        Args:
            image: ``(B, in_channels, *spatial)``, each axis a multiple of ``scale``.

        Returns:
            ``(B, num_classes, *spatial)``.

        Raises:
            InputError: if the image's axes do not fit, or the network does not return logits of its input's size.
        """
        image = plain(image)
        size = image.shape[2:]
        if not is_converting() and (len(size) != self.spatial_dims or any(n % self.scale for n in size)):
            raise InputError(
                f"HRDA: found images of {list(size)}, wanted {self.spatial_dims} axes, each a multiple of {self.scale}"
            )
        coarse = self._coarser(image)
        context = self._logits(coarse)
        attention = self.attention(context, coarse)
        if self.training:
            window = self._draw(size)
            attention, detail = attention * self._inside(window, attention), self._placed(image, window)
        else:
            detail = self._sliding(image)
        return self._up((1.0 - attention) * context, size) + self._up(attention, size) * detail

    def _logits(self, image: Tensor) -> Tensor:
        logits = self.network(image)
        wanted = (image.shape[0], self.num_classes, *image.shape[2:])
        if not is_converting() and (not isinstance(logits, Tensor) or logits.shape != wanted):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise InputError(f"HRDA: the network gave {found} for {tuple(image.shape)}, wanted logits {wanted}")
        assert isinstance(logits, Tensor)
        return logits

    def _up(self, values: Tensor, size: Sequence[int]) -> Tensor:
        return functional.interpolate(values, size=tuple(size), mode=self._mode, align_corners=False)

    def _sliding(self, image: Tensor) -> Tensor:
        """Predict all of the image in detail, averaging logits where windows overlap, as the paper does."""
        size = image.shape[2:]
        corners = list(product(*[self._starts(n) for n in size]))
        parts = torch.cat([in_window(image, self._window(corner, size)) for corner in corners])
        batches: Iterable[Tensor] = [parts] if is_converting() else parts.split(self.window_batch_size)
        logits = torch.cat([self._logits(batch) for batch in batches]).unflatten(0, (len(corners), -1))
        total = sum(surrounded(logits[k], corner, size) for k, corner in enumerate(corners))
        for axis, n in enumerate(size):
            once = image.new_ones((n // self.scale,))
            seen = sum(surrounded(once[None, None], [start], [n]) for start in self._starts(n))
            total = total / seen.view(-1, *[1] * (self.spatial_dims - 1 - axis))  # type: ignore[union-attr]
        assert isinstance(total, Tensor)
        return total

    def _draw(self, size: Sequence[int]) -> tuple[slice, ...]:
        """Draw a window whose corner lies on the context's grid."""
        window = []
        for n in size:
            length = n // self.scale
            start = self.scale * int(torch.randint((n - length) // self.scale + 1, (1,)))
            window.append(slice(start, start + length))
        return tuple(window)

    def _placed(self, image: Tensor, window: tuple[slice, ...]) -> Tensor:
        """Predict the detail crop and surround it with zeros."""
        detail = self._logits(in_window(image, window))
        if self._recorded is not None:
            self._recorded.append(AuxiliaryOutput(detail, window, self.detail_weight))
        return surrounded(detail, [part.start for part in window], image.shape[2:])

    def _inside(self, window: tuple[slice, ...], like: Tensor) -> Tensor:
        """Return 1 for the context's cells inside the window, else 0, ``(1, 1, *cells)``."""
        inside = torch.zeros((1, 1, *like.shape[2:]), dtype=like.dtype, device=like.device)
        in_window(inside, [slice(part.start // self.scale, part.stop // self.scale) for part in window]).fill_(1.0)
        return inside

    def _starts(self, n: int) -> list[int]:
        """Return where windows begin on an axis of ``n`` voxels: evenly, from the first voxel to the last."""
        return [k * (n - n // self.scale) // (self._windows - 1) for k in range(self._windows)]

    def _window(self, corner: Sequence[int], size: Sequence[int]) -> list[slice]:
        return [slice(start, start + n // self.scale) for start, n in zip(corner, size, strict=True)]


def in_window(values: Tensor, window: Sequence[slice]) -> Tensor:
    """Return the part of ``values`` ``(B, channels, *spatial)`` in a window, a view."""
    return values[(slice(None), slice(None), *window)]


def surrounded(values: Tensor, corner: Sequence[int], size: Sequence[int]) -> Tensor:
    """Return ``values`` ``(B, C, *part)`` with zeros around, at ``corner`` of ``(B, C, *size)``."""
    margins = [(s, n - s - m) for s, n, m in zip(corner, size, values.shape[2:], strict=True)]
    # The last axis comes first.
    return functional.pad(values, [edge for pair in reversed(margins) for edge in pair])
