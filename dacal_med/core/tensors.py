# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Tensors without meta data, which would ride through every operation and into gradients and optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

INTERPOLATIONS = {1: "linear", 2: "bilinear", 3: "trilinear"}
"""``mode`` of ``torch.nn.functional.interpolate`` for linear interpolation, by number of spatial axes."""


def plain(value: Any) -> Tensor:
    """Return a tensor with meta data (MONAI's ``MetaTensor``, known by ``as_tensor``) or an array as a plain tensor."""
    if hasattr(value, "as_tensor"):
        return value.as_tensor()
    return value if isinstance(value, Tensor) else torch.as_tensor(value)  # which a trace would take for a constant


def at_least_single(tensor: Tensor) -> Tensor:
    """Return a tensor of reduced precision as float32, float32 and float64 as they are."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def seed_draws(seed: int) -> None:
    """Seed the generators that layers draw from, as ``torch.manual_seed`` does, but without its traces."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
