# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One streaming pass over predictions: the sums from which every score and every reliability plot derives.

Counts are int64 and sums float64, so that they stay exact past 2^24 voxels in a bin, where float32 counters stop. Sums
of different images, cases or ranks add up.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from dacal_med.core.ranking import RANK_BINS, rank_bin
from dacal_med.core.tensors import plain

FINE_BINS = 30
"""Bins of width 1/30, ``(lo, hi]``, 0 in the first; 10 and 15 equal-width bins are exact sums of them."""

REGIONS = ("all", "foreground", "boundary")
_CHUNK = 1 << 19  # voxels per step: bounds the float64 copies, whatever the size of the image
_SUM_TOLERANCE = {torch.float16: 2e-2, torch.bfloat16: 5e-2}
_NAMES = (
    "confusion",
    "confidence_count",
    "confidence_correct",
    "confidence_sum",
    "class_count",
    "class_positive",
    "class_sum",
    "nll_sum",
    "brier_sum",
    "voxel_count",
    "rank_count",
    "rank_positive",
)
_LATER = frozenset({"rank_count", "rank_positive"})  # states of earlier versions lack them


class SegmentationStatistics:
    """Sums over voxels of segmentations with class probabilities.

    Voxels belong to nested regions: ``all`` that are not ignored, ``foreground`` where truth or prediction is not
    background, ``boundary`` within ``boundary_width`` voxels of a change of the true label.

    Attributes:
        confusion: ``(C, C)`` int64, ``[truth, prediction]``.
        confidence_count: ``(3, 30)`` int64, voxels by region and bin of the largest probability.
        confidence_correct: ``(3, 30)`` int64, those whose prediction is right.
        confidence_sum: ``(3, 30)`` float64, sum of their largest probabilities.
        class_count: ``(C, 30)`` int64, voxels by bin of each class's probability (one against the rest).
        class_positive: ``(C, 30)`` int64, those of that class.
        class_sum: ``(C, 30)`` float64, sum of those probabilities.
        nll_sum: ``(3, C)`` float64, negative log-likelihood by region and true class.
        brier_sum: ``(3, C)`` float64, squared distance to the one-hot truth by region and true class.
        voxel_count: ``(3, C)`` int64, voxels by region and true class.
        rank_count: ``(C, 385)`` int64, voxels by class and :func:`~dacal_med.core.ranking.rank_bin` of its
            probability; fewer in all than voxels where states of earlier versions, which lack these, were loaded.
        rank_positive: ``(C, 385)`` int64, those of that class.

    Args:
        num_classes: number of classes, at least 2.
        ignore_index: label that is left out; ``None`` for none.
        background: class that is not foreground; ``None`` where every class counts.
        boundary_width: half-width of the boundary band in voxels, 0 for none.

    Raises:
        ValueError: if a number is out of range.
    """

    confusion: Tensor
    confidence_count: Tensor
    confidence_correct: Tensor
    confidence_sum: Tensor
    class_count: Tensor
    class_positive: Tensor
    class_sum: Tensor
    nll_sum: Tensor
    brier_sum: Tensor
    voxel_count: Tensor
    rank_count: Tensor
    rank_positive: Tensor

    def __init__(
        self,
        num_classes: int,
        *,
        ignore_index: int | None = 255,
        background: int | None = 0,
        boundary_width: int = 2,
    ) -> None:
        if num_classes < 2 or boundary_width < 0:
            raise ValueError(
                f"found num_classes={num_classes}, boundary_width={boundary_width}; wanted at least 2 and at least 0"
            )
        if background is not None and not 0 <= background < num_classes:
            raise ValueError(f"background: found {background}, wanted a class below {num_classes} or None")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.background = background
        self.boundary_width = boundary_width
        bins = (num_classes, FINE_BINS)
        regions = len(REGIONS)
        self.confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.confidence_count = torch.zeros(regions, FINE_BINS, dtype=torch.int64)
        self.confidence_correct = torch.zeros(regions, FINE_BINS, dtype=torch.int64)
        self.confidence_sum = torch.zeros(regions, FINE_BINS, dtype=torch.float64)
        self.class_count = torch.zeros(bins, dtype=torch.int64)
        self.class_positive = torch.zeros(bins, dtype=torch.int64)
        self.class_sum = torch.zeros(bins, dtype=torch.float64)
        self.nll_sum = torch.zeros(regions, num_classes, dtype=torch.float64)
        self.brier_sum = torch.zeros(regions, num_classes, dtype=torch.float64)
        self.voxel_count = torch.zeros(regions, num_classes, dtype=torch.int64)
        self.rank_count = torch.zeros(num_classes, RANK_BINS, dtype=torch.int64)
        self.rank_positive = torch.zeros(num_classes, RANK_BINS, dtype=torch.int64)

    @torch.no_grad()
    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Add images.

        Args:
            probabilities: ``(B, C, *spatial)`` class probabilities, any floating-point type.
            labels: ``(B, 1, *spatial)`` true classes or ``ignore_index``.

        Raises:
            ValueError: if shapes do not fit, a label is out of range, or the probabilities are not finite, not in
                ``[0, 1]`` or do not sum to 1. Nothing is added then.
        """
        probabilities, labels = plain(probabilities), plain(labels).long()
        self._check(probabilities, labels)
        if labels.numel() == 0:
            return
        self.to(probabilities.device)
        band = self._band(labels)
        for image, truth, near in zip(probabilities, labels[:, 0], band, strict=True):
            flat, flat_truth, flat_near = image.flatten(1), truth.flatten(), near.flatten()
            for start in range(0, flat.shape[1], _CHUNK):
                part = slice(start, start + _CHUNK)
                self._add(flat[:, part], flat_truth[part], flat_near[part])

    def _check(self, probabilities: Tensor, labels: Tensor) -> None:
        wanted = (probabilities.shape[0], 1, *probabilities.shape[2:])
        if probabilities.dim() < 3 or probabilities.shape[1] != self.num_classes or tuple(labels.shape) != wanted:
            raise ValueError(
                f"found probabilities {tuple(probabilities.shape)} and labels {tuple(labels.shape)}, wanted "
                f"(B, {self.num_classes}, *spatial) and (B, 1, *spatial)"
            )
        if not probabilities.is_floating_point():
            raise ValueError(f"probabilities: found dtype {probabilities.dtype}, wanted floating point")
        valid = (
            labels != self.ignore_index if self.ignore_index is not None else torch.ones_like(labels, dtype=torch.bool)
        )
        wrong = valid & ((labels < 0) | (labels >= self.num_classes))
        if bool(wrong.any()):
            raise ValueError(
                f"labels: found {labels[wrong].unique().tolist()[:5]}, wanted 0 to {self.num_classes - 1}"
                + ("" if self.ignore_index is None else f" or {self.ignore_index} (ignored)")
            )
        if labels.numel() == 0:
            return
        # NaN fails both comparisons, so that no third pass is needed.
        low, high = probabilities.amin(), probabilities.amax()
        if not (bool(low >= 0.0) and bool(high <= 1.0 + 1e-4)):
            raise ValueError(
                f"probabilities: found values from {float(low)} to {float(high)}, wanted 0 to 1 (softmax first)"
            )
        total = probabilities.sum(dim=1, dtype=torch.float32)
        error = float((total - 1.0).abs().max()) if total.numel() else 0.0
        if error > _SUM_TOLERANCE.get(probabilities.dtype, 1e-3):
            raise ValueError(
                f"probabilities: found sums over classes off by {error:.3g}, wanted 1 (softmax over dim 1 first)"
            )

    def _band(self, labels: Tensor) -> Tensor:
        """Return where a change of the true label is near, ``(B, *spatial)`` bool; one to ignored does not count."""
        if self.boundary_width == 0:
            return torch.zeros_like(labels[:, 0], dtype=torch.bool)
        highest = lowest = labels.float()
        if self.ignore_index is not None:
            ignored = labels == self.ignore_index
            highest = highest.masked_fill(ignored, -1.0)
            lowest = lowest.masked_fill(ignored, float(self.num_classes))
        return (_window_maximum(highest, self.boundary_width) > -_window_maximum(-lowest, self.boundary_width))[:, 0]

    def _add(self, p: Tensor, truth: Tensor, near: Tensor) -> None:
        """Add voxels: probabilities ``(C, N)``, truth ``(N,)``, in the boundary band or not ``(N,)``."""
        classes = self.num_classes
        if self.ignore_index is not None:
            kept = truth != self.ignore_index
            if not bool(kept.all()):
                p, truth, near = p[:, kept], truth[kept], near[kept]
        if truth.numel() == 0:
            return
        confidence, prediction = p.max(dim=0)
        self.confusion += torch.bincount(truth * classes + prediction, minlength=classes**2).view(classes, classes)
        if self.background is None:
            foreground = torch.ones_like(near)
        else:
            foreground = (truth != self.background) | (prediction != self.background)
        # Two bits per voxel, foreground and boundary, from which the three regions are summed.
        bits = foreground.long() * 2 + near
        bins = _fine_bin(confidence)
        index = (bits * 2 + (truth == prediction)) * FINE_BINS + bins
        shape = (4, 2, FINE_BINS)
        count = torch.bincount(index, minlength=8 * FINE_BINS).view(shape)
        total = torch.bincount(index, weights=confidence.double(), minlength=8 * FINE_BINS).view(shape)
        self.confidence_count += _by_region(count.sum(1))
        self.confidence_correct += _by_region(count[:, 1])
        self.confidence_sum += _by_region(total.sum(1))
        of_truth = p.gather(0, truth.unsqueeze(0))[0].double()
        nll = -of_truth.clamp_min(torch.finfo(p.dtype).tiny).log()
        brier = p.double().square().sum(dim=0) - 2.0 * of_truth + 1.0
        index = bits * classes + truth
        shape2 = (4, classes)
        self.voxel_count += _by_region(torch.bincount(index, minlength=4 * classes).view(shape2))
        self.nll_sum += _by_region(torch.bincount(index, weights=nll, minlength=4 * classes).view(shape2))
        self.brier_sum += _by_region(torch.bincount(index, weights=brier, minlength=4 * classes).view(shape2))
        for k in range(classes):
            index, positive = _fine_bin(p[k]), truth == k
            self.class_sum[k] += torch.bincount(index, weights=p[k].double(), minlength=FINE_BINS)
            for name, of_class in (("class", index), ("rank", rank_bin(p[k]))):
                counts, positives = getattr(self, f"{name}_count")[k], getattr(self, f"{name}_positive")[k]
                both = torch.bincount(2 * of_class + positive, minlength=2 * len(counts)).view(-1, 2)
                counts += both.sum(1)
                positives += both[:, 1]

    def tensors(self) -> list[Tensor]:
        """Return the sums, in a fixed order; ranks may add them in place."""
        return [getattr(self, name) for name in _NAMES]

    def to(self, device: torch.device | str) -> SegmentationStatistics:
        """Move the sums to ``device``; returns itself."""
        for name in _NAMES:
            setattr(self, name, getattr(self, name).to(device))
        return self

    def settings(self) -> dict[str, int | None]:
        """Return what must be equal for two statistics to be added."""
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_index,
            "background": self.background,
            "boundary_width": self.boundary_width,
        }

    def copy(self) -> SegmentationStatistics:
        """Return an independent copy."""
        other = SegmentationStatistics(
            self.num_classes,
            ignore_index=self.ignore_index,
            background=self.background,
            boundary_width=self.boundary_width,
        )
        for name in _NAMES:
            setattr(other, name, getattr(self, name).clone())
        return other

    def __iadd__(self, other: SegmentationStatistics) -> SegmentationStatistics:
        """Add another's sums.

        Raises:
            ValueError: if the settings differ.
        """
        if self.settings() != other.settings():
            raise ValueError(f"cannot add statistics with other settings: {self.settings()} and {other.settings()}")
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine += theirs.to(mine.device)
        return self

    def __add__(self, other: SegmentationStatistics) -> SegmentationStatistics:
        """Return the sum of both."""
        result = self.copy()
        result += other
        return result

    def state_dict(self) -> dict[str, Tensor]:
        """Return the sums by name."""
        return {name: getattr(self, name).clone() for name in _NAMES}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace the sums; those that a state of an earlier version lacks become 0.

        Raises:
            ValueError: if one is missing or has another shape.
        """
        if _LATER.isdisjoint(state):
            state = {**state, **{name: torch.zeros_like(getattr(self, name)) for name in _LATER}}
        for name in _NAMES:
            if name not in state or state[name].shape != getattr(self, name).shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"{name}: found {found}, wanted {tuple(getattr(self, name).shape)}")
        for name in _NAMES:
            setattr(self, name, state[name].clone())


def _fine_bin(values: Tensor) -> Tensor:
    """Return the bin ``(k/30, (k+1)/30]`` of each value in ``[0, 1]``, exactly, as int32."""
    if values.dtype == torch.float64:
        edges = torch.arange(1, FINE_BINS, dtype=torch.float64, device=values.device) / FINE_BINS
        return torch.bucketize(values, edges, out_int32=True)
    # Products of 24-bit numbers with 30 are exact in float64.
    return (values.double() * FINE_BINS).ceil_().int().sub_(1).clamp_(0, FINE_BINS - 1)


def _by_region(by_bits: Tensor) -> Tensor:
    """Sum ``(4, ...)`` sums by foreground and boundary bit into ``(3, ...)`` sums by region."""
    return torch.stack([by_bits.sum(0), by_bits[2] + by_bits[3], by_bits[1] + by_bits[3]])


def _window_maximum(values: Tensor, width: int) -> Tensor:
    """Return the maximum over ``2 * width + 1`` voxels along every axis of ``(B, 1, *spatial)``, axis by axis."""
    for axis in range(2, values.dim()):
        moved = values.movedim(axis, -1)
        pooled = functional.max_pool1d(moved.reshape(-1, 1, moved.shape[-1]), 2 * width + 1, stride=1, padding=width)
        values = pooled.view(moved.shape).movedim(-1, axis)
    return values
