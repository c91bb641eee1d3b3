# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks that MONAI does not have, as a site runs them, without losses and pretrained weights."""

from __future__ import annotations

from .encoders import ENCODERS, Encoder, encoder
from .heads import HEADS
from .multi_resolution import MultiResolution
from .segmentation import SegmentationNetwork, segmentation_network

__all__ = ["ENCODERS", "HEADS", "Encoder", "MultiResolution", "SegmentationNetwork", "encoder", "segmentation_network"]
