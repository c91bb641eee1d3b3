# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Networks that MONAI does not have: Mix Transformer and DeepLab, HRDA, and what calibrates a network.

Training and clinical sites build them from the same names, so that nothing here needs more than a site installs.
"""

from __future__ import annotations

from dacal_med.networks.calibrated import CalibratedNetwork
from dacal_med.networks.encoders import ENCODERS, Encoder, encoder
from dacal_med.networks.heads import HEADS
from dacal_med.networks.hrda import HRDA
from dacal_med.networks.segmentation import SegmentationNetwork, segmentation_network

__all__ = [
    "ENCODERS",
    "HEADS",
    "HRDA",
    "CalibratedNetwork",
    "Encoder",
    "SegmentationNetwork",
    "encoder",
    "segmentation_network",
]
