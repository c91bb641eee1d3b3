# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A network whose logits are scaled and shifted by class, as a site's own labelled cases ask for."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CalibratedNetwork(nn.Module):
    """``weight * logits + bias`` by class: temperature scaling (all weights ``1 / T``, no bias) or vector scaling.

    Guo et al., ICML 2017, arXiv 1706.04599. Weight and bias are buffers, so that they travel with the weights.

    Args:
        network: maps ``(B, channels, *spatial)`` to logits ``(B, num_classes, *spatial)``.
        num_classes: number of classes.
        spatial_dims: number of spatial axes.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, network: nn.Module, num_classes: int, spatial_dims: int) -> None:
        super().__init__()
        self.network = network
        shape = (1, num_classes, *[1] * spatial_dims)
        self.register_buffer("weight", torch.ones(shape))
        self.register_buffer("bias", torch.zeros(shape))

    def forward(self, image: Tensor) -> Tensor:
        """Return calibrated logits ``(B, num_classes, *spatial)``."""
        return self.network(image) * self.weight + self.bias
