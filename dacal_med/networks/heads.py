# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Heads: from an encoder's feature maps to logits, at the resolution of the finest map they use.

Convolution, normalisation and activation are MONAI's ``Convolution`` block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional

from dacal_med.io.errors import InputError

NORMS = ("batch", "none")


def _convolution(
    in_channels: int, out_channels: int, kernel_size: int, norm: str, dilation: int = 1, groups: int = 1
) -> Convolution:
    """Return convolution, normalisation (or a bias) and ReLU; the size stays."""
    if norm not in NORMS:
        raise InputError(f"head_options#norm: found {norm!r}, wanted one of {list(NORMS)}")
    return Convolution(
        2,
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        dilation=dilation,
        groups=groups,
        norm="BATCH" if norm == "batch" else None,
        act="RELU",
        bias=norm != "batch",
    )


def _separable(in_channels: int, out_channels: int, norm: str, dilation: int = 1) -> nn.Sequential:
    """Return a depthwise 3x3 and a pointwise convolution, each with normalisation and ReLU."""
    return nn.Sequential(
        _convolution(in_channels, in_channels, 3, norm, dilation, groups=in_channels),
        _convolution(in_channels, out_channels, 1, norm),
    )


def _pyramid(in_channels: int, channels: int, dilations: Sequence[int], norm: str) -> nn.ModuleList:
    """Return the branches of a depthwise-separable atrous pyramid; a dilation of 1 is a 1x1 convolution."""
    return nn.ModuleList(
        _convolution(in_channels, channels, 1, norm) if rate == 1 else _separable(in_channels, channels, norm, rate)
        for rate in dilations
    )


def _resized(features: Tensor, like: Tensor) -> Tensor:
    return functional.interpolate(features, size=like.shape[2:], mode="bilinear", align_corners=False)


def _stacked(embed: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """Return the embedded features of all stages at the resolution of the first, one above the other."""
    embedded = [_resized(layer(stage), features[0]) for layer, stage in zip(embed, features, strict=True)]
    return torch.cat(embedded, dim=1)


class DAFormerHead(nn.Module):
    """Context-aware feature fusion (DAFormer, Hoyer et al., CVPR 2022, arXiv 2111.14887).

    Every stage is embedded in ``channels`` channels, brought to the finest resolution and stacked; a
    depthwise-separable atrous pyramid without image pooling looks at the stack, a 3x3 convolution fuses its branches.

    Args:
        in_channels: channels of the features.
        num_classes: number of classes.
        channels: width of embedding and fusion.
        dilations: of the pyramid's branches.
        dropout: of whole channels before the classifier.
        norm: ``"batch"`` or ``"none"``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in in_channels)
        self.pyramid = _pyramid(channels * len(in_channels), channels, dilations, norm)
        self.fuse = _convolution(channels * len(dilations), channels, 3, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits ``(B, num_classes, rows, columns)`` at the resolution of the first of ``features``."""
        stacked = _stacked(self.embed, features)
        fused = self.fuse(torch.cat([branch(stacked) for branch in self.pyramid], dim=1))
        logits = self.classifier(self.dropout(fused))
        assert isinstance(logits, Tensor)
        return logits


class SegFormerHead(nn.Module):
    """All-MLP head of SegFormer (Xie et al., NeurIPS 2021, arXiv 2105.15203).

    Args:
        in_channels: channels of the features.
        num_classes: number of classes.
        channels: width; the paper has 256 for MiT-B0 and B1, 768 for the others.
        dropout: of whole channels before the classifier.
        norm: ``"batch"`` or ``"none"``.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 768,
        dropout: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        # A 1x1 convolution is the linear layer applied to every cell.
        self.embed = nn.ModuleList(nn.Conv2d(n, channels, 1) for n in in_channels)
        self.fuse = _convolution(channels * len(in_channels), channels, 1, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits ``(B, num_classes, rows, columns)`` at the resolution of the first of ``features``."""
        logits = self.classifier(self.dropout(self.fuse(_stacked(self.embed, features))))
        assert isinstance(logits, Tensor)
        return logits


class DeepLabV2Head(nn.Module):
    """Atrous pyramid of DeepLabV2 (Chen et al., arXiv 1606.00915): the sum of dilated classifiers of the last features.

    Args:
        in_channels: channels of the features.
        num_classes: number of classes.
        dilations: of the classifiers. The paper has these four; published adaptation results often rest on code that
            uses ``(6, 12)`` alone, as the DAFormer authors found.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, dilations: Sequence[int] = (6, 12, 18, 24)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(in_channels[-1], num_classes, 3, padding=rate, dilation=rate) for rate in dilations
        )
        for branch in self.branches:
            nn.init.normal_(branch.weight, std=0.01)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits ``(B, num_classes, rows, columns)`` at the resolution of the last of ``features``."""
        return torch.stack([branch(features[-1]) for branch in self.branches]).sum(dim=0)


class DeepLabV3PlusHead(nn.Module):
    """Atrous pyramid with image pooling, and a decoder with fine features (Chen et al., ECCV 2018, arXiv 1802.02611).

    Args:
        in_channels: channels of the features.
        num_classes: number of classes.
        channels: width.
        fine_channels: width of the projected fine features.
        dilations: of the pyramid; the paper's for output stride 16, doubled for 8.
        dropout: of whole channels before the classifier.
        norm: ``"batch"``, as in the paper, for which a training batch needs two images, or ``"none"``: DAFormer's
            authors found that batch norm in the decoder of a CNN harms adaptation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 256,
        fine_channels: int = 48,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dropout: float = 0.1,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        self.pyramid = _pyramid(in_channels[-1], channels, dilations, norm)
        self.pooled = _convolution(in_channels[-1], channels, 1, norm)
        self.project = _convolution(channels * (len(dilations) + 1), channels, 1, norm)
        self.fine = _convolution(in_channels[0], fine_channels, 1, norm)
        self.decode = nn.Sequential(
            _separable(channels + fine_channels, channels, norm), _separable(channels, channels, norm)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Return logits ``(B, num_classes, rows, columns)`` at the resolution of the first of ``features``."""
        fine, coarse = features[0], features[-1]
        pooled = self.pooled(coarse.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *coarse.shape[2:])
        context = self.project(torch.cat([pooled, *[branch(coarse) for branch in self.pyramid]], dim=1))
        decoded = self.decode(torch.cat([_resized(context, fine), self.fine(fine)], dim=1))
        logits = self.classifier(self.dropout(decoded))
        assert isinstance(logits, Tensor)
        return logits


HEADS: dict[str, type[nn.Module]] = {
    "daformer": DAFormerHead,
    "segformer": SegFormerHead,
    "deeplabv2": DeepLabV2Head,
    "deeplabv3plus": DeepLabV3PlusHead,
}
