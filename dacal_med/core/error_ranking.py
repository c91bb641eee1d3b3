# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Does a temperature map say where the teacher is wrong? Counts by bin of log T, from which AUROC and spread follow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dacal_med.core.tensors import plain

BINS = 1000
REGIONS = ("all", "foreground")


class ErrorRanking:
    """Counts of right and wrong voxels by their temperature, in one pass and constant memory.

    Bins are equal in ``log T`` between the bounds, so that the AUROC treats temperatures within 0.3 % (for bounds of
    1/4 and 4) as ties.

    Attributes:
        count: ``(2, 2, BINS)`` int64, voxels by region (all, foreground), right or wrong, and bin.
        at_bounds: ``(2,)`` int64, voxels within 1 % of a bound, by region.

    Args:
        low: lower bound of the temperature, positive.
        high: upper bound.
        ignore_index: label that is left out; ``None`` for none.
        background: class that is not foreground; ``None`` where every class counts.

    Raises:
        ValueError: unless ``0 < low < high``.
    """

    def __init__(self, low: float, high: float, *, ignore_index: int | None = 255, background: int | None = 0) -> None:
        if not 0.0 < low < high:
            raise ValueError(f"bounds: found {low} and {high}, wanted 0 < low < high")
        self.low, self.high = low, high
        self.ignore_index = ignore_index
        self.background = background
        self.count = torch.zeros(len(REGIONS), 2, BINS, dtype=torch.int64)
        self.at_bounds = torch.zeros(len(REGIONS), dtype=torch.int64)

    @torch.no_grad()
    def update(self, temperature: Tensor, prediction: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            temperature: ``(B, 1, *spatial)``, clipped to the bounds.
            prediction: ``(B, 1, *spatial)`` classes.
            labels: ``(B, 1, *spatial)`` true classes or ``ignore_index``.

        Raises:
            ValueError: if the shapes differ.
        """
        temperature, prediction, labels = plain(temperature), plain(prediction).long(), plain(labels).long()
        if not temperature.shape == prediction.shape == labels.shape:
            raise ValueError(
                f"found temperature {tuple(temperature.shape)}, prediction {tuple(prediction.shape)} and labels "
                f"{tuple(labels.shape)}, wanted one shape"
            )
        kept = torch.ones_like(labels, dtype=torch.bool) if self.ignore_index is None else labels != self.ignore_index
        foreground = kept
        if self.background is not None:
            foreground = kept & ((labels != self.background) | (prediction != self.background))
        position = (temperature.double() / self.low).log() / math.log(self.high / self.low)
        bins = (position * BINS).long().clamp(0, BINS - 1)
        wrong = (prediction != labels).long()
        bound = (temperature <= self.low * 1.01) | (temperature >= self.high * 0.99)
        for region, inside in enumerate((kept, foreground)):
            index = (wrong * BINS + bins)[inside]
            self.count[region] += torch.bincount(index, minlength=2 * BINS).view(2, BINS).to(self.count.device)
            self.at_bounds[region] += int((bound & inside).sum())

    def tensors(self) -> list[Tensor]:
        """Return the sums; ranks may add them in place."""
        return [self.count, self.at_bounds]

    def summary(self) -> dict[str, float | None]:
        """Return what is known of the map, ready for JSON; ``None`` where it cannot be measured.

        Returns:
            By region (``foreground_`` before the name for the foreground): ``auroc``, the probability that a wrong
            voxel has a higher temperature than a right one, ties counting half; ``mean``, the geometric mean of ``T``;
            ``std``, the standard deviation of ``log T``; ``at_bounds``, a share.
        """
        result: dict[str, float | None] = {}
        for region, name in enumerate(REGIONS):
            prefix = "" if name == "all" else f"{name}_"
            values = _summary(self.count[region].double().cpu(), float(self.at_bounds[region]))
            centres = math.log(self.low) + (torch.arange(BINS) + 0.5) / BINS * math.log(self.high / self.low)
            weight = self.count[region].sum(0).double().cpu()
            total = float(weight.sum())
            if total:
                mean = float((weight * centres).sum()) / total
                values["mean"] = math.exp(mean)
                values["std"] = math.sqrt(float((weight * (centres - mean).square()).sum()) / total)
            result.update({prefix + key: value for key, value in values.items()})
        return result


def _summary(count: Tensor, at_bounds: float) -> dict[str, float | None]:
    right, wrong = count
    pairs, total = float(right.sum() * wrong.sum()), float(count.sum())
    below = right.cumsum(0) - right
    return {
        "auroc": float((wrong * (below + 0.5 * right)).sum()) / pairs if pairs else None,
        "mean": None,
        "std": None,
        "at_bounds": at_bounds / total if total else None,
    }
