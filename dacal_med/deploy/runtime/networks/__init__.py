# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks that MONAI does not have, as a site runs them, without losses and pretrained weights."""

from __future__ import annotations

from dacal_med.deploy.runtime.networks.encoders import ENCODERS, Encoder, encoder
from dacal_med.deploy.runtime.networks.heads import HEADS
from dacal_med.deploy.runtime.networks.multi_resolution import MultiResolution
from dacal_med.deploy.runtime.networks.segmentation import SegmentationNetwork, segmentation_network

__all__ = ["ENCODERS", "HEADS", "Encoder", "MultiResolution", "SegmentationNetwork", "encoder", "segmentation_network"]
