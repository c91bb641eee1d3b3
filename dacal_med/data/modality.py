# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What kind of images a domain has: what their headers tell, else what is given, else a guess."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import psutil

from dacal_med.io.errors import InputError
from dacal_med.io.reading import is_image_file, is_picture, keep_voxels, read_header, read_image

_CODES = ("CT", "MR", "PT", "US", "NM", "CR", "DX", "MG", "XA", "OP", "OPT")  # what DICOM calls them
_CT_BELOW = -200.0  # only Hounsfield units reach this far below zero: air and lung
_SAMPLED_IMAGES = 3
_KEPT = 0.25  # of the memory that is available


def modality_of(images: Sequence[str], where: str, given: str | None = None) -> str:
    """Return the modality of the images of a domain.

    Args:
        images: their paths.
        where: what messages call the domain.
        given: what the user said, if anything.

    Returns:
        "CT", "MR" and so on as the headers of DICOM tell; without DICOM, ``given``, or a guess from a few images: "RGB"
        or "gray" for pictures, "CT" where most go below -200, otherwise "MR".

    Raises:
        InputError: the headers tell several, or another one than is given.
    """
    told: dict[str, str] = {}
    for image in images:
        # Files of other formats than DICOM do not say.
        modality = None if is_image_file(image) else read_header(image).modality
        if modality is not None:
            told.setdefault(modality, image)
    if given is not None:
        clash = [name for name in told if name != given.upper()] if given.upper() in _CODES else []
        if clash:
            raise InputError(
                f"{where}: 'modality' says {given!r}, {told[clash[0]]} says {clash[0]!r}; wanted the same."
            )
        return given
    if len(told) > 1:
        (first, image), (second, other) = list(told.items())[:2]
        raise InputError(f"{where}: found {first} ({image}) and {second} ({other}); wanted images of one modality.")
    return next(iter(told), None) or _guessed(images)


def keep_what_is_checked() -> None:
    """Keep voxels that are read before training for training to take, in a quarter of the memory that is available."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    keep_voxels(int(psutil.virtual_memory().available * _KEPT / processes))


def _guessed(images: Sequence[str]) -> str:
    some = images[:: max(1, len(images) // _SAMPLED_IMAGES)][:_SAMPLED_IMAGES]
    if is_picture(some[0]):
        return "RGB" if read_header(some[0]).channels == 3 else "gray"
    keep_what_is_checked()
    below = [float(np.nanmin(read_image(image, keep=True).array)) < _CT_BELOW for image in some]
    return "CT" if sum(below) * 2 > len(below) else "MR"
