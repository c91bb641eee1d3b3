# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Distance of features to those of a frozen network, where a cell of the feature map shows one chosen class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional


def class_cells(targets: Tensor, classes: Sequence[int], cells: Sequence[int], min_share: float = 0.75) -> Tensor:
    """Return the cells of a coarse grid that one of ``classes`` fills (DAFormer, arXiv 2111.14887).

    Args:
        targets: ``(B, C, *spatial)`` one-hot labels, all 0 where there is no label.
        classes: which classes count, each on its own.
        cells: size of the coarse grid, one number for each axis.
        min_share: share of the cell's voxels that one class must fill, in ``(0.5, 1]``.

    Returns:
        ``(B, 1, *cells)`` bool.
    """
    share = functional.interpolate(targets[:, list(classes)], size=tuple(cells), mode="area")
    # A mean of ones and zeros may miss the share by rounding.
    return (share >= min_share - 1e-6).any(dim=1, keepdim=True)


def feature_distance(
    features: Tensor, reference: Tensor, mask: Tensor, over_batch: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Return the mean Euclidean distance between features inside a mask (DAFormer).

    Args:
        features: ``(B, F, *cells)``.
        reference: as ``features``, without gradient.
        mask: ``(B, 1, *cells)`` bool.
        over_batch: sums a tensor over the parts of a batch, where this is only one of them.

    Returns:
        A scalar, at least 0; 0 for an empty mask.
    """
    distance = torch.linalg.vector_norm(features - reference, dim=1, keepdim=True)
    sums = torch.stack([(distance * mask).sum(), mask.sum().to(distance.dtype)])
    distances, cells = sums if over_batch is None else over_batch(sums)
    return distances / cells.clamp_min(1)
