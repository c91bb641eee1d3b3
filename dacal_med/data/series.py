# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether MONAI's reader sees a folder of DICOM slices as the volume that they are.

The reader sorts what it finds and divides the whole length by the number of slices, so that a missing or repeated
slice gives a volume of another scale, and slices of several series give a mixture, without a word. What the slices say
is read by the same code as at a site.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dacal_med.io.dicom import series_geometry
from dacal_med.io.discovery import discover
from dacal_med.io.errors import InputError

_TOLERANCE = 0.1  # of the smallest voxel size, as between a label and its image


def check_series(folder: Path, shape: Sequence[int], affine: np.ndarray | None) -> None:
    """Check a folder that is to hold one DICOM series.

    Args:
        folder: as a datalist names it.
        shape: of the volume, as it was read.
        affine: voxel index to patient millimetres (RAS) as it was read.

    Raises:
        InputError: the folder holds several series or none, slices are missing, repeated or no even stack, or what was
            read lies elsewhere than its slices.
    """
    try:
        sources = [source for source in discover(folder, 3, identify=True) if source.dicom]
        if len(sources) != 1:
            raise InputError(f"found {len(sources)} series (a damaged file counts as one); wanted a folder of one")
        slices, wanted, _ = series_geometry(sources[0].files, "the series", sources[0].file_name)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    rows, columns = slices[0].shape
    size = (columns, rows, len(slices))
    if tuple(shape) != size or affine is None:
        raise InputError(f"{folder}: found a volume of {tuple(shape)} voxels; wanted {size}, the size of its slices")
    # The reader may count slices from the other end.
    corners = np.array([[x, y, z, 1] for x in (0, columns - 1) for y in (0, rows - 1) for z in (0, len(slices) - 1)]).T
    turned = corners.copy()
    turned[2] = len(slices) - 1 - turned[2]
    apart = min(np.linalg.norm((affine @ corners - wanted @ c)[:3], axis=0).max() for c in (corners, turned))
    if not apart <= _TOLERANCE * np.linalg.norm(wanted[:3, :3], axis=0).min():
        raise InputError(
            f"{folder}: the volume that was read lies up to {apart:.3g} mm away from its slices (a tilted gantry, or "
            "frames in another order); wanted slices along their normal: convert it to NIfTI"
        )
