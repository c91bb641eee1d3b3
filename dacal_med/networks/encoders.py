# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Encoders: Mix Transformers and ResNets of ``transformers``, as four feature maps of an image.

Mix Transformer: SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203). ResNet: He et al. (CVPR 2016, arXiv
1512.03385), dilated as in DeepLab (Chen et al., arXiv 1706.05587).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dacal_med.io.errors import InputError
from dacal_med.networks.weights import load_weights

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NORMALISATIONS = ("imagenet", "none")
ATTENTIONS = ("math", "sdpa")

_SMALL, _LARGE = [32, 64, 160, 256], [64, 128, 320, 512]
_MIT: dict[str, dict[str, Any]] = {
    "mit_b0": {"hidden_sizes": _SMALL, "depths": [2, 2, 2, 2]},
    "mit_b1": {"hidden_sizes": _LARGE, "depths": [2, 2, 2, 2]},
    "mit_b2": {"hidden_sizes": _LARGE, "depths": [3, 4, 6, 3]},
    "mit_b3": {"hidden_sizes": _LARGE, "depths": [3, 4, 18, 3]},
    "mit_b4": {"hidden_sizes": _LARGE, "depths": [3, 8, 27, 3]},
    "mit_b5": {"hidden_sizes": _LARGE, "depths": [3, 6, 40, 3]},
}
_RESNET: dict[str, dict[str, Any]] = {"resnet50": {"depths": [3, 4, 6, 3]}, "resnet101": {"depths": [3, 4, 23, 3]}}
ENCODERS = (*_MIT, *_RESNET)
# What `weights="imagenet"` stands for on the hub.
_HUB = {name: f"nvidia/{name.replace('_', '-')}" for name in _MIT}
_HUB.update({"resnet50": "microsoft/resnet-50", "resnet101": "microsoft/resnet-101"})


class Encoder(nn.Module):
    """An image in, four feature maps out, the finest first.

    Args:
        body: a ``SegformerModel`` or ``ResNetModel``.
        normalisation: ``"imagenet"`` brings images in [0, 1] to the mean and standard deviation that ImageNet weights
            were trained with, inside the network, so that transforms, mixing and what is deployed see [0, 1];
            ``"none"`` takes images as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, body: nn.Module, normalisation: str = "imagenet") -> None:
        super().__init__()
        config: Any = body.config
        self.in_channels = int(config.num_channels)
        self.channels = [int(n) for n in config.hidden_sizes]
        imagenet = normalisation == "imagenet"
        mean = IMAGENET_MEAN if imagenet else (0.0,) * self.in_channels
        std = IMAGENET_STD if imagenet else (1.0,) * self.in_channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.body = body

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the features ``(B, channels[i], rows / stride, columns / stride)`` of each stage.

        Args:
            image: ``(B, in_channels, rows, columns)``.
        """
        features = (image - self.mean) / self.std
        body: Any = self.body
        stages = body.stages if hasattr(body, "stages") else body.encoder.stages
        if hasattr(body, "embedder"):
            features = body.embedder(features)
        found = []
        for stage in stages:
            features = stage(features)
            found.append(features)
        return found


def encoder(
    name: str = "mit_b5",
    in_channels: int = 3,
    weights: str | None = None,
    normalisation: str = "imagenet",
    output_stride: int = 32,
    attention: str = "math",
    options: Mapping[str, Any] | None = None,
) -> Encoder:
    """Return an encoder by name.

    Args:
        name: one of :data:`ENCODERS`.
        in_channels: image channels.
        weights: ``None`` for random ones; ``"imagenet"`` for those of the hub, from its cache if they are there; else a
            file (``.safetensors``, or a ``state_dict`` read with ``weights_only=True``), a folder with one, or the name
            of a repository on the hub. See :func:`dacal_med.networks.weights.load_weights`.
        normalisation: see :class:`Encoder`.
        output_stride: of the last stage, 8, 16 or 32; below 32 the last stages of a ResNet are dilated instead of
            strided.
        attention: of the Mix Transformer: ``"math"`` has forward-mode derivatives, and the attention matrices in
            memory; ``"sdpa"`` is PyTorch's fused one, whose flash kernel on the CPU has none: the bi-level step then
            falls back to finite differences.
        options: of ``transformers.SegformerConfig`` or ``ResNetConfig``, over those of ``name``; for other sizes.

    Raises:
        InputError: for a name or number that is not known, weights that do not fit, or where transformers is not
            installed.
    """
    if name not in ENCODERS:
        raise InputError(f"encoder: found {name!r}, wanted one of {list(ENCODERS)}")
    if normalisation not in NORMALISATIONS or (normalisation == "imagenet" and in_channels != len(IMAGENET_MEAN)):
        raise InputError(
            f"normalisation: found {normalisation!r} for {in_channels} channel(s), wanted 'imagenet' for 3 channels "
            f"(RGB) or 'none'"
        )
    if attention not in ATTENTIONS:
        raise InputError(f"attention: found {attention!r}, wanted one of {list(ATTENTIONS)}")
    if output_stride not in (8, 16, 32) or (output_stride < 32 and name in _MIT):
        raise InputError(f"output_stride: found {output_stride} for {name}, wanted 8, 16 or 32 for a ResNet, else 32")
    library = _transformers()
    if name in _MIT:
        if attention == "math":
            library.AttentionInterface.register("dacal_math", _math_attention)
        config = library.SegformerConfig(**{"num_channels": in_channels, **_MIT[name], **(options or {})})
        implementation = {"math": "dacal_math", "sdpa": "sdpa"}[attention]
        body = library.SegformerModel._from_config(config, attn_implementation=implementation)
    else:
        config = library.ResNetConfig(**{"num_channels": in_channels, **_RESNET[name], **(options or {})})
        body = library.ResNetModel(config)
        # The classifier's pooling takes no part here.
        body.pooler = nn.Identity()
        _dilate(body.encoder.stages, output_stride)
    if weights is not None:
        load_weights(body, _HUB[name] if weights == "imagenet" else weights)
    return Encoder(body, normalisation)


def _math_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float = 1.0,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Return attention in plain operations; unlike ``transformers``' own the softmax stays in the input's precision."""
    shares = (torch.matmul(query, key.transpose(2, 3)) * scaling).softmax(dim=-1)
    shares = nn.functional.dropout(shares, p=dropout, training=module.training)
    return torch.matmul(shares, value).transpose(1, 2).contiguous(), shares


def _dilate(stages: nn.ModuleList, output_stride: int) -> None:
    """Replace the strides of the last stages by dilation; a stage's first block keeps the dilation of the one before.

    ``transformers`` has strides alone. The order is torchvision's ``replace_stride_with_dilation`` and mmsegmentation's
    ``contract_dilation``; weights are the same.
    """
    dilation, stride = 1, 4
    for stage in list(stages)[1:]:
        stride *= 2
        before = dilation
        if stride > output_stride:
            dilation *= 2
        for position, layer in enumerate(stage.layers):  # type: ignore[arg-type]
            for convolution in (m for m in layer.modules() if isinstance(m, nn.Conv2d)):
                if stride > output_stride:
                    convolution.stride = (1, 1)
                if convolution.kernel_size == (3, 3):
                    rate = before if position == 0 else dilation
                    convolution.dilation = convolution.padding = (rate, rate)


def _transformers() -> Any:
    """Return the library; it comes with the extra ``driving`` and takes seconds to import."""
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise InputError(
            f"the encoders come from the package transformers, which cannot be imported ({error}); wanted "
            f"pip install 'dacal-med[driving]'"
        ) from error
