# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What the report calls volumes and pictures, and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """What volumes and pictures are spoken of in.

    Attributes:
        size: how much there is of a structure.
        cells: what it is counted in.
        overlays: heading of what is shown of each case.
        intro: what that is.
    """

    size: str
    cells: str
    overlays: str
    intro: str


VOLUMES = Words(
    "volume",
    "voxels",
    "Slices",
    "The slice with the most of all structures, and the one with the most voxels of low confidence.",
)
PICTURES = Words("area", "pixels", "Pictures", "Whole pictures, those with the lowest expected Dice first.")
