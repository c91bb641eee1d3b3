# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What an exported model refuses to run on, and what it runs on with a warning."""

from __future__ import annotations

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.io.image import Array, Header, finite_in_single

_SHEAR_TOLERANCE = 1e-3  # cosine of the angle between two axes
_CHUNK_VOXELS = 1 << 22


def check_header(
    header: Header, name: str, spatial_dims: int, channels: int, modality: str | None, force: bool
) -> list[str]:
    """Refuse an image that the model cannot be run on, before its voxels are read.

    Args:
        header: of the image.
        name: what messages call it.
        spatial_dims: axes of the model's images.
        channels: channels of the model's images.
        modality: what the model was made for, as its metadata says.
        force: run on another modality all the same.

    Returns:
        What the user should know and need not stop for.

    Raises:
        InputError: other axes or channels, or another modality.
    """
    if len(header.shape) != spatial_dims:
        raise InputError(f"{name}: found {len(header.shape)} spatial axes; this model wants {spatial_dims}")
    if header.channels != channels:
        raise InputError(f"{name}: found {header.channels} channel(s); this model wants {channels}")
    warnings = list(header.notes)
    if header.affine is not None:
        axes = header.affine[:3, :3] / np.linalg.norm(header.affine[:3, :3], axis=0)
        shear = float(np.abs(axes.T @ axes - np.eye(3)).max())
        if shear > _SHEAR_TOLERANCE and header.format != "dicom":  # whose notes tell of the gantry's tilt
            angle = float(np.degrees(np.arcsin(min(1.0, shear))))
            warnings.append(f"axes are {angle:.1f} degrees from orthogonal: resampled to an orthogonal grid inside")
    if modality is not None and header.modality not in (None, modality):
        found = f"found modality {header.modality}; this model is made for {modality}"
        if not force:
            raise InputError(f"{name}: {found}; --force true runs it all the same")
        warnings.append(f"{found}: run because of --force")
    return warnings


def check_voxels(array: Array, name: str) -> None:
    """Refuse values that are not finite and images without contrast, a chunk at a time.

    Args:
        array: voxels.
        name: what messages call the image.

    Raises:
        InputError: no voxel, NaN, infinity, or one value everywhere.
    """
    if array.size == 0:
        raise InputError(f"{name}: found size {array.shape}; wanted an image with voxels")
    bad, low, high = 0, np.inf, -np.inf
    axis = int(np.argmax(array.shape))
    for chunk in np.array_split(array, min(-(-array.size // _CHUNK_VOXELS), array.shape[axis]), axis=axis):
        finite = finite_in_single(chunk)
        bad += chunk.size - int(finite.sum())
        if finite.any():
            low, high = min(low, float(chunk[finite].min())), max(high, float(chunk[finite].max()))
    if bad:
        raise InputError(
            f"{name}: found {bad} voxel(s) that are NaN or infinite in single precision; wanted finite values"
        )
    if low == high:
        raise InputError(f"{name}: found the one value {low:g} in every voxel; wanted an image")
