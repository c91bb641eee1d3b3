# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""HRDA: a network that sees the whole image coarsely and a part of it finely, and learns which to trust where."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dacal_med.core.tensors import plain
from dacal_med.deploy.runtime.networks.multi_resolution import MultiResolution, surrounded
from dacal_med.io.errors import InputError


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


def in_window(values: Tensor, window: Sequence[slice]) -> Tensor:
    """Return the part of ``values`` ``(B, channels, *spatial)`` in a window, a view."""
    return values[(slice(None), slice(None), *window)]


class HRDA(MultiResolution):
    """Multi-resolution prediction as it is trained; see :class:`~dacal_med.deploy.runtime.networks.MultiResolution`.

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
        window_batch_size: detail windows predicted at once in eval mode.

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
        super().__init__(
            network, num_classes, in_channels, spatial_dims, scale, hidden_channels, overlap, window_batch_size
        )
        if not 0.0 <= detail_weight < 1.0:
            raise InputError(f"network_def#detail_weight: found detail_weight={detail_weight}, wanted [0, 1)")
        self.detail_weight = detail_weight
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
        if not self.training:
            return super().forward(image)
        context, attention = self._context(image)
        window = self._draw(image.shape[2:])
        return self._fused(context, attention * self._inside(window, attention), self._placed(image, window))

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
