# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Masks of random blocks: which part of an image is hidden (masked image consistency, arXiv 2212.01322)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def block_mask(
    batch_size: int,
    size: Sequence[int],
    block_size: Sequence[int],
    ratio: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Hide each block of a regular grid with probability ``ratio`` (MIC, Hoyer et al., CVPR 2023).

    Block ``m`` of an axis covers ``[m * b, (m + 1) * b)``; where ``b`` does not divide the axis, the last one is cut.

    Args:
        batch_size: number of masks, each with draws of its own.
        size: of the image, any number of axes.
        block_size: of a block along each axis, in voxels, from 1 to the axis.
        ratio: probability that a block is hidden, in ``[0, 1]``.
        generator: of the draws; torch's global one by default.

    Returns:
        ``(batch_size, 1, *size)`` bool on the CPU, true where the image is hidden.

    Raises:
        ValueError: if the block does not fit the image or the ratio is out of range.
    """
    if len(block_size) != len(size) or any(not 1 <= b <= n for b, n in zip(block_size, size, strict=False)):
        raise ValueError(f"block_size: found {list(block_size)}, wanted 1 to {list(size)}, one number for each axis")
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio: found {ratio}, wanted a number in [0, 1]")
    grid = [-(-n // b) for n, b in zip(size, block_size, strict=True)]
    mask = torch.rand((batch_size, 1, *grid), generator=generator) < ratio
    for axis, (n, b) in enumerate(zip(size, block_size, strict=True), start=2):
        mask = mask.repeat_interleave(b, dim=axis).narrow(axis, 0, n)
    return mask
