# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Transforms of intensities and labels, in MONAI's array and dictionary forms."""

from __future__ import annotations

from dacal_med.transforms.fourier import RandFourierAmplitudeMix, RandFourierAmplitudeMixd
from dacal_med.transforms.histogram import RandHistogramMatch, RandHistogramMatchd
from dacal_med.transforms.intensity import intensity_transform
from dacal_med.transforms.labels import IGNORE_INDEX, LabelsToChannelsd
from dacal_med.transforms.nonlinear import RandNonlinearIntensity, RandNonlinearIntensityd

__all__ = [
    "IGNORE_INDEX",
    "LabelsToChannelsd",
    "RandFourierAmplitudeMix",
    "RandFourierAmplitudeMixd",
    "RandHistogramMatch",
    "RandHistogramMatchd",
    "RandNonlinearIntensity",
    "RandNonlinearIntensityd",
    "intensity_transform",
]
