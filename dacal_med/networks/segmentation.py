# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What :mod:`dacal_med.deploy.runtime.networks` builds, with the weights that training begins from."""

from __future__ import annotations

from typing import Any

from dacal_med.deploy.runtime import networks
from dacal_med.deploy.runtime.networks import Encoder, SegmentationNetwork
from dacal_med.networks.weights import load_weights

# What `weights="imagenet"` stands for on the hub.
_HUB = {name: f"nvidia/{name.replace('_', '-')}" for name in networks.ENCODERS if name.startswith("mit")}
_HUB.update({"resnet50": "microsoft/resnet-50", "resnet101": "microsoft/resnet-101"})


def encoder(name: str = "mit_b5", in_channels: int = 3, weights: str | None = None, **options: Any) -> Encoder:
    """Return an encoder by name.

    Args:
        name: one of :data:`dacal_med.networks.ENCODERS`.
        in_channels: image channels.
        weights: ``None`` for random ones; ``"imagenet"`` for those of the hub, from its cache if they are there; else a
            file (``.safetensors``, or a ``state_dict`` read with ``weights_only=True``), a folder with one, or the name
            of a repository on the hub. See :func:`dacal_med.networks.weights.load_weights`.
        options: further ones of :func:`dacal_med.deploy.runtime.networks.encoder`.

    Raises:
        InputError: for a name or number that is not known, or weights that do not fit.
    """
    return _begun(networks.encoder(name, in_channels, **options), name, weights)


def segmentation_network(
    name: str = "daformer",
    encoder: str = "mit_b5",
    num_classes: int = 19,
    in_channels: int = 3,
    weights: str | None = None,
    **options: Any,
) -> SegmentationNetwork:
    """Return a network by the names of its head and its encoder.

    Args:
        name: of the head, one of :data:`dacal_med.networks.HEADS`.
        encoder: name of the encoder, one of :data:`dacal_med.networks.ENCODERS`.
        num_classes: number of classes.
        in_channels: image channels.
        weights: of the encoder, as of :func:`encoder`; the head's are always random.
        options: further ones of :func:`dacal_med.deploy.runtime.networks.segmentation_network`.

    Raises:
        InputError: for a name, number or option that is not known, or weights that do not fit.
    """
    network = networks.segmentation_network(name, encoder, num_classes, in_channels, **options)
    _begun(network.encoder, encoder, weights)
    return network


def _begun(made: Encoder, name: str, weights: str | None) -> Encoder:
    """Load the weights that training begins from, if any, and return the encoder."""
    if weights is not None:
        load_weights(made.body, _HUB[name] if weights == "imagenet" else weights)
    return made
