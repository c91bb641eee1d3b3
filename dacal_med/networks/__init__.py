# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Segmentation networks of the driving benchmarks that MONAI does not have: Mix Transformer and DeepLab."""

from __future__ import annotations

from dacal_med.deploy.runtime.networks import ENCODERS, HEADS, Encoder, SegmentationNetwork
from dacal_med.networks.segmentation import encoder, segmentation_network

__all__ = ["ENCODERS", "HEADS", "Encoder", "SegmentationNetwork", "encoder", "segmentation_network"]
