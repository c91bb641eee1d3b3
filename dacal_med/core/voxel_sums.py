# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums over a part of an image's voxels, by class, by bin and by region, in one of two ways with the same result.

On the CPU they are compiled (:mod:`dacal_med.core.compiled`); on other devices, and for float64, PyTorch's operations
make them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dacal_med.core.binning import COMMON_BINS, FINE_BINS, common_bin, fine_bin

_HIGHEST = 1.0 + 1e-4  # the largest number that still is a probability
_SUM_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}  # how far from 1 sums over classes may be; else 1e-3
_ROOM = (1 << 29) - 1  # bits that float64 has beyond float32


class VoxelSums(NamedTuple):
    """Counts (int64) and sums (float64) over voxels.

    A voxel's bits are ``2 * foreground + boundary``: whether truth or prediction is not background, whether it is in
    the boundary band.

    Attributes:
        confusion: ``(C, C)`` count by truth and prediction.
        confidence_count: ``(4, 2, 30)`` count by bits, right or not, and bin of the largest probability.
        confidence_sum: ``(4, 30)`` largest probabilities by bits and bin.
        class_count: ``(C, COMMON_BINS)`` count by class and common bin of its probability.
        class_sum: ``(C, COMMON_BINS)`` those probabilities.
        class_positive: ``(C, COMMON_BINS)`` count of those of that class.
        voxel_count: ``(4, C)`` count by bits and true class.
        nll_sum: ``(4, C)`` negative log-likelihoods.
        brier_sum: ``(4, C)`` squared distances to the one-hot truth.
    """

    confusion: Tensor
    confidence_count: Tensor
    confidence_sum: Tensor
    class_count: Tensor
    class_sum: Tensor
    class_positive: Tensor
    voxel_count: Tensor
    nll_sum: Tensor
    brier_sum: Tensor

    def add(self, other: VoxelSums) -> None:
        """Add the sums over other voxels, in place."""
        for mine, theirs in zip(self, other, strict=True):
            mine += theirs


def voxel_sums(p: Tensor, truth: Tensor, near: Tensor, background: int | None) -> VoxelSums:
    """Return the sums over voxels.

    Args:
        p: ``(C, N)`` probabilities, any floating-point type.
        truth: ``(N,)`` true classes, int32.
        near: ``(N,)`` bool, whether in the boundary band.
        background: class that is not foreground; ``None`` for none.

    Raises:
        ValueError: if the probabilities are not finite, not in ``[0, 1]`` or do not sum to 1.
    """
    if p.device.type != "cpu" or p.dtype == torch.float64:
        check_probabilities(p)
        return _by_operations(p, truth, near, background)
    # Here, since importing numba takes half a second that commands which add nothing need not wait for.
    from dacal_med.core.compiled import compiled_sums

    tiny = torch.finfo(p.dtype).tiny
    classes, voxels = p.shape
    values = p.detach().float()
    if values.stride(1) != 1:
        values = values.contiguous()
    step = values.stride(0)
    row = values.as_strided(((classes - 1) * step + voxels,), (1,))  # without a copy of a part of an image
    arrays = truth.contiguous().numpy(), near.contiguous().numpy()
    none = -1 if background is None else background
    limits = _HIGHEST, _tolerance(p.dtype)
    sums, doubtful = compiled_sums(row.numpy(), step, classes, *arrays, none, tiny, limits, FINE_BINS, COMMON_BINS)
    if doubtful:  # if only for the sign of a zero
        check_probabilities(p)
    return VoxelSums(*(torch.from_numpy(array) for array in sums))


def check_probabilities(p: Tensor) -> None:
    """Refuse what is not a probability.

    Args:
        p: ``(C, N)``, at least one voxel.

    Raises:
        ValueError: if a number is not finite or not in ``[0, 1]``, or classes do not sum to 1.
    """
    # NaN fails both comparisons, so that no third pass is needed.
    low, high = p.amin(), p.amax()
    if not (bool(low >= 0.0) and bool(high <= _HIGHEST)):
        raise ValueError(
            f"probabilities: found values from {float(low)} to {float(high)}, wanted 0 to 1 (softmax first)"
        )
    error = float((p.sum(dim=0, dtype=torch.float32) - 1.0).abs().max())
    if error > _tolerance(p.dtype):
        raise ValueError(
            f"probabilities: found sums over classes off by {error:.3g}, wanted 1 (softmax over dim 1 first)"
        )


def _tolerance(dtype: torch.dtype) -> float:
    return _SUM_TOLERANCE.get(dtype, 1e-3)


def _by_operations(p: Tensor, truth: Tensor, near: Tensor, background: int | None) -> VoxelSums:
    classes = len(p)
    class_count, class_sum, confidence, prediction, brier = _over_classes(p)
    confusion = torch.bincount(truth * classes + prediction, minlength=classes**2).view(classes, classes)
    bits = near.int()
    if background is None:
        bits += 2
    else:
        bits += ((truth != background) | (prediction != background)).int().mul_(2)
    index = (2 * bits + (truth == prediction)).mul_(FINE_BINS).add_(fine_bin(confidence, p.dtype))
    shape = (4, 2, FINE_BINS)
    confidence_count = torch.bincount(index, minlength=8 * FINE_BINS).view(shape)
    confidence_sum = torch.bincount(index, weights=confidence, minlength=8 * FINE_BINS).view(shape).sum(1)
    of_truth = p.gather(0, truth.long().unsqueeze(0))[0]
    exact = of_truth.double()
    index = (truth * COMMON_BINS).add_(common_bin(of_truth, exact))
    class_positive = torch.bincount(index, minlength=classes * COMMON_BINS).view(classes, COMMON_BINS)
    brier.sub_(exact, alpha=2.0).add_(1.0)
    nll = exact.clamp_min_(torch.finfo(p.dtype).tiny).log_().neg_()
    index, shape_by_truth = bits * classes + truth, (4, classes)
    voxel_count, nll_sum, brier_sum = (
        torch.bincount(index, weights=values, minlength=4 * classes).view(shape_by_truth)
        for values in (None, nll, brier)
    )
    return VoxelSums(
        confusion,
        confidence_count,
        confidence_sum,
        class_count,
        class_sum,
        class_positive,
        voxel_count,
        nll_sum,
        brier_sum,
    )


def _over_classes(p: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return counts and sums ``(C, COMMON_BINS)`` by common bin, and three values a voxel ``(N,)``.

    Those are the largest probability (float64), the first class that has it (int32), and the sum over classes of the
    squares (float64).
    """
    classes = len(p)
    squares = torch.zeros(p.shape[1], dtype=torch.float64, device=p.device)
    largest = torch.zeros_like(squares, dtype=torch.int64)
    count, total = [], []
    for k, of_class in enumerate(p):
        exact = of_class.double()
        squares.addcmul_(exact, exact)
        # Positive numbers order as their bits do; what float64 adds to shorter numbers is 0: room for the class.
        torch.maximum(largest, exact.view(torch.int64) + (classes - 1 - k), out=largest)
        index = common_bin(of_class, exact)
        count.append(torch.bincount(index, minlength=COMMON_BINS))
        total.append(torch.bincount(index, weights=exact, minlength=COMMON_BINS))
    counts, totals = torch.stack(count), torch.stack(total)
    if p.dtype == torch.float64:
        confidence, prediction = p.max(dim=0)
        return counts, totals, confidence, prediction.int(), squares
    prediction = (classes - 1) - (largest & _ROOM).int()
    return counts, totals, (largest & ~_ROOM).view(torch.float64), prediction, squares
