# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Bring the intensities of each kind of image to [0, 1]."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from monai.transforms import MapTransform, ScaleIntensityRanged, ScaleIntensityRangePercentilesd

CT_WINDOW = (-160.0, 240.0)  # HU, the usual soft-tissue window
PERCENTILES = (1.0, 99.0)


def intensity_transform(
    modality: str, keys: Hashable | Sequence[Hashable] = "image", *, allow_missing_keys: bool = False
) -> MapTransform:
    """The intensity normalisation of a kind of image.

    Args:
        modality: "CT" has an absolute scale, so a fixed window of -160 to 240 HU is used; "RGB" holds bytes; everything
            else ("MR", "EM", "gray") has an arbitrary scale, so its 1st and 99th percentiles per channel are used.
        keys: which entries of the item to normalise.
        allow_missing_keys: whether an item may lack a key.

    Returns:
        A MONAI dictionary transform whose output lies in [0, 1], clipped.

    Raises:
        ValueError: ``modality`` is empty.
    """
    name = modality.strip().upper()
    if not name:
        raise ValueError("modality is empty; wanted a name such as 'CT', 'MR' or 'RGB'.")
    if name == "CT":
        low, high = CT_WINDOW
        return ScaleIntensityRanged(keys, low, high, 0.0, 1.0, clip=True, allow_missing_keys=allow_missing_keys)
    if name == "RGB":
        return ScaleIntensityRanged(keys, 0.0, 255.0, 0.0, 1.0, clip=True, allow_missing_keys=allow_missing_keys)
    low, high = PERCENTILES
    return ScaleIntensityRangePercentilesd(
        keys, low, high, 0.0, 1.0, clip=True, channel_wise=True, allow_missing_keys=allow_missing_keys
    )
