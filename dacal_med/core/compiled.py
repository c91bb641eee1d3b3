# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The sums over voxels on the CPU, compiled by numba: every probability is binned and added while it is at hand.

PyTorch passes over the voxels once an operation, about a dozen times. Here a block of a class's probabilities is read
once: its bins are found by vector instructions, then counted and added in several histograms in turn, since adding to
one place waits for the addition before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from dacal_med.core.ranking import HALF, LOWEST, RANK_SHIFT

Function = TypeVar("Function", bound=Callable[..., Any])
_BLOCK = 2048  # voxels at a time: what is kept of each stays in a core's cache
_TURNS = 4  # histograms of a class
# Given as an argument: what is kept of compiled code is made anew when this file changes, not when another does.
_RANK = np.int32(RANK_SHIFT), np.int32(LOWEST), np.int32(HALF)


def _compiled(function: Function) -> Function:
    """Compile at the first call; machine code is kept beside the bytecode or, where that is read-only, for the user."""
    try:
        return cast(Function, njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # no folder to keep it in
        return cast(Function, njit(nogil=True, error_model="numpy")(function))


@_compiled
def _bin(value: Any, bins: int, rank: tuple[Any, Any, Any]) -> Any:
    """Return the common bin of a probability; a bin for any other number, too."""
    shift, first, last = rank
    lower = np.float32(value).view(np.int32) >> shift
    upper = np.float32(np.float32(1.0) - value).view(np.int32) >> shift
    place = min(max(lower, first), last) - min(max(upper, first), last) + last - first
    # Products of 24-bit numbers with the number of bins are exact in float64.
    fine = np.int32(np.ceil(np.float64(value) * bins)) - np.int32(1)
    return place + min(max(fine, np.int32(0)), np.int32(bins - 1))


@_compiled
def _look(
    values: NDArray[Any],
    k: int,
    bins: int,
    rank: tuple[Any, Any, Any],
    best: NDArray[Any],
    guess: NDArray[Any],
    squares: NDArray[Any],
    whole: NDArray[Any],
    index: NDArray[Any],
) -> Any:
    """Bring voxels up to class ``k`` and find the bins of its values; return whether one has a sign."""
    for n in range(len(values)):
        value = values[n]
        squares[n] += np.float64(value) * np.float64(value)
        whole[n] += value
        larger = value > best[n]
        best[n] = value if larger else best[n]
        guess[n] = np.int32(k) if larger else guess[n]
    signs = np.int32(0)
    for n in range(len(values)):  # apart, so that both become vector instructions
        signs |= np.float32(values[n]).view(np.int32)
        index[n] = _bin(values[n], bins, rank)
    return signs < 0


@_compiled
def _scatter(values: NDArray[Any], index: NDArray[Any], count: NDArray[Any], total: NDArray[Any]) -> None:
    whole = len(values) - len(values) % 4
    for n in range(0, whole, 4):
        a, b, c, d = index[n], index[n + 1], index[n + 2], index[n + 3]
        count[0, a] += 1
        count[1, b] += 1
        count[2, c] += 1
        count[3, d] += 1
        total[0, a] += np.float64(values[n])
        total[1, b] += np.float64(values[n + 1])
        total[2, c] += np.float64(values[n + 2])
        total[3, d] += np.float64(values[n + 3])
    for n in range(whole, len(values)):
        count[0, index[n]] += 1
        total[0, index[n]] += np.float64(values[n])


@_compiled
def _score(
    p: NDArray[Any],
    step: int,
    truth: NDArray[Any],
    near: NDArray[Any],
    background: int,
    tiny: float,
    limits: tuple[float, float],
    bins: int,
    rank: tuple[Any, Any, Any],
    best: NDArray[Any],
    guess: NDArray[Any],
    squares: NDArray[Any],
    whole: NDArray[Any],
    confusion: NDArray[Any],
    confidence: tuple[NDArray[Any], NDArray[Any]],
    positive: NDArray[Any],
    by_truth: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
) -> Any:
    """Add what depends on the voxel as a whole; return whether one is in doubt."""
    odd = 0
    for n in range(len(truth)):
        t, g = truth[n], guess[n]
        # Written so that they hold for what is not a number.
        odd += not abs(whole[n] - np.float32(1.0)) <= limits[1]
        odd += not best[n] <= limits[0]
        confusion[t, g] += 1
        largest = np.float64(best[n])
        fine = min(max(int(np.ceil(largest * bins)) - 1, 0), bins - 1)
        bits = 2 * int(t != background or g != background) + int(near[n])
        confidence[0][bits, int(t == g), fine] += 1
        confidence[1][bits, fine] += largest
        value = p[t * step + n]
        positive[t, _bin(value, bins, rank)] += 1
        of_truth = np.float64(value)
        by_truth[0][bits, t] += 1
        by_truth[1][bits, t] -= np.log(max(of_truth, tiny))
        by_truth[2][bits, t] += squares[n] - 2.0 * of_truth + 1.0
    return odd > 0


@_compiled
def _add(
    p: NDArray[Any],
    step: int,
    truth: NDArray[Any],
    near: NDArray[Any],
    background: int,
    tiny: float,
    limits: tuple[float, float],
    bins: int,
    rank: tuple[Any, Any, Any],
    block: int,
    confusion: NDArray[Any],
    confidence: tuple[NDArray[Any], NDArray[Any]],
    by_class: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
    by_truth: tuple[NDArray[Any], NDArray[Any], NDArray[Any]],
) -> Any:
    best, guess, whole = np.empty(block, np.float32), np.empty(block, np.int32), np.empty(block, np.float32)
    squares, index = np.empty(block, np.float64), np.empty(block, np.int32)
    doubtful = False
    for start in range(0, len(truth), block):
        stop = min(start + block, len(truth))
        size = stop - start
        best[:], guess[:], squares[:], whole[:] = -1.0, 0, 0.0, 0.0
        for k in range(len(confusion)):
            values = p[k * step + start : k * step + stop]
            doubtful |= _look(
                values, k, bins, rank, best[:size], guess[:size], squares[:size], whole[:size], index[:size]
            )
            _scatter(values, index[:size], by_class[0][k], by_class[1][k])
        doubtful |= _score(
            p[start:],
            step,
            truth[start:stop],
            near[start:stop],
            background,
            tiny,
            limits,
            bins,
            rank,
            best[:size],
            guess[:size],
            squares[:size],
            whole[:size],
            confusion,
            confidence,
            by_class[2],
            by_truth,
        )
    return doubtful


def compiled_sums(
    p: NDArray[np.float32],
    step: int,
    classes: int,
    truth: NDArray[np.int32],
    near: NDArray[np.bool_],
    background: int,
    tiny: float,
    limits: tuple[float, float],
    fine_bins: int,
    common_bins: int,
) -> tuple[tuple[NDArray[Any], ...], bool]:
    """Return the arrays of :class:`~dacal_med.core.voxel_sums.VoxelSums`, in its order, and whether ``p`` is doubtful.

    It is where a number has a sign or is too large, or where a sum over classes is too far from 1 or not a number;
    where it is not, all of them are probabilities.

    Args:
        p: probabilities, contiguous; that of class ``k`` at voxel ``n`` is number ``k * step + n``.
        step: from one class to the next, at least ``N``.
        classes: ``C``.
        truth: ``(N,)`` true classes, ``0`` to ``C - 1``.
        near: ``(N,)``, whether in the boundary band.
        background: class that is not foreground, -1 for none.
        tiny: least probability whose logarithm is taken.
        limits: the largest number that still is a probability, and how far from 1 a sum over classes may be.
        fine_bins: bins of equal width.
        common_bins: bins of :func:`~dacal_med.core.binning.common_bin`.
    """
    confusion = np.zeros((classes, classes), np.int64)
    confidence = np.zeros((4, 2, fine_bins), np.int64), np.zeros((4, fine_bins))
    turns = (classes, _TURNS, common_bins)
    by_class = np.zeros(turns, np.int64), np.zeros(turns), np.zeros((classes, common_bins), np.int64)
    by_truth = np.zeros((4, classes), np.int64), np.zeros((4, classes)), np.zeros((4, classes))
    doubtful = _add(
        p,
        step,
        truth,
        near,
        background,
        tiny,
        limits,
        fine_bins,
        _RANK,
        _BLOCK,
        confusion,
        confidence,
        by_class,
        by_truth,
    )
    sums = (confusion, *confidence, by_class[0].sum(1), by_class[1].sum(1), by_class[2], *by_truth)
    return sums, bool(doubtful)
