# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoder and head as one network, by name: a ``_target_`` for configurations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from dacal_med.io.errors import InputError
from dacal_med.networks.converting import is_converting
from dacal_med.networks.encoders import Encoder
from dacal_med.networks.encoders import encoder as make_encoder
from dacal_med.networks.heads import HEADS

MIN_SIZE = 32  # below, the coarsest features would be less than one cell
# What a DeepLab was published with; other heads take all stages as they are.
_OUTPUT_STRIDES = {"deeplabv2": 8, "deeplabv3plus": 16}


class SegmentationNetwork(nn.Module):
    """An encoder, a head, and bilinear interpolation of the logits to the size of the image.

    Layers by name: ``encoder`` (gives a list of features, of which a feature distance takes the last) and ``head``.

    Args:
        encoder: gives features, the finest first.
        head: maps them to logits.
    """

    def __init__(self, encoder: Encoder, head: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, num_classes, rows, columns)``.

        Args:
            image: ``(B, in_channels, rows, columns)``, the axes in either order, at least 32 each.

        Raises:
            InputError: for an image that is too small or has another number of axes or channels.
        """
        if not is_converting():
            self._check(image)
        logits = self.head(self.encoder(image))
        return functional.interpolate(logits, size=image.shape[2:], mode="bilinear", align_corners=False)

    def _check(self, image: Tensor) -> None:
        if image.dim() != 4 or min(image.shape[2:]) < MIN_SIZE:
            raise InputError(
                f"{type(self).__name__}: found images of shape {tuple(image.shape)}, wanted (B, channels, rows, "
                f"columns), at least {MIN_SIZE} rows and columns: choose a larger `roi_size`, or scale images less"
            )
        channels = self.encoder.in_channels
        if image.shape[1] != channels:  # one channel would be spread over all by the normalisation
            raise InputError(
                f"{type(self).__name__}: found images of {image.shape[1]} channel(s), wanted {channels}: set "
                "`in_channels` to what the images have"
            )


def segmentation_network(
    name: str = "daformer",
    encoder: str = "mit_b5",
    num_classes: int = 19,
    in_channels: int = 3,
    weights: str | None = None,
    normalisation: str = "imagenet",
    output_stride: int | None = None,
    attention: str = "math",
    encoder_options: Mapping[str, Any] | None = None,
    head_options: Mapping[str, Any] | None = None,
) -> SegmentationNetwork:
    """Return a network by the names of its head and its encoder.

    Args:
        name: of the head, one of :data:`~.heads.HEADS`.
        encoder: name of the encoder, one of :data:`~.encoders.ENCODERS`.
        num_classes: number of classes.
        in_channels: image channels.
        weights: of the encoder, as of :func:`~.encoders.encoder`; the head's are always random.
        normalisation: ``"imagenet"`` or ``"none"``.
        output_stride: of a ResNet; ``None`` for 8 under DeepLabV2, 16 under DeepLabV3+, else 32.
        attention: ``"math"`` or ``"sdpa"``.
        encoder_options: over those of the encoder's name.
        head_options: of the head's class.

    Raises:
        InputError: for a name, number or option that is not known, or weights that do not fit.
    """
    if name not in HEADS:
        raise InputError(f"network_def#name: found {name!r}, wanted one of {sorted(HEADS)}")
    if num_classes < 2:
        raise InputError(f"network_def#num_classes: found {num_classes}, wanted at least 2")
    if output_stride is None:
        output_stride = _OUTPUT_STRIDES.get(name, 32) if encoder.startswith("resnet") else 32
    body = make_encoder(encoder, in_channels, weights, normalisation, output_stride, attention, encoder_options)
    try:
        head = HEADS[name](body.channels, num_classes, **(head_options or {}))
    except TypeError as error:
        raise InputError(f"network_def#head_options: {name!r} does not take them: {error}") from error
    return SegmentationNetwork(body, head)
