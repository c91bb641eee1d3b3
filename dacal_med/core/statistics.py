# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One streaming pass over predictions: the sums from which every score and every reliability plot derives.

Counts are int64 and sums float64, so that they stay exact past 2^24 voxels in a bin, where float32 counters stop. Sums
of different images, cases or ranks add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from dacal_med.core.binning import FINE_BINS, by_fine_bin, by_rank_bin
from dacal_med.core.ranking import RANK_BINS
from dacal_med.core.tensors import plain
from dacal_med.core.voxel_sums import VoxelSums, check_probabilities, voxel_sums

REGIONS = ("all", "foreground", "boundary")
_CHUNK = 1 << 16  # voxels per step, whatever the size of the image: what is made of them stays in a core's cache
_BAND_VOXELS = 1 << 19  # voxels of a slab in which the boundary band is sought
_LAUNCHES = 8  # times as many on other devices, where starting an operation costs more than memory does
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
        probabilities, labels = plain(probabilities), plain(labels)
        self._check(probabilities, labels)
        if labels.numel() == 0:
            return
        self.to(probabilities.device)
        sums: VoxelSums | None = None
        for image, truth in zip(probabilities, labels[:, 0], strict=True):
            for found in self._parts(image.flatten(1), truth.flatten(), self._band(truth).flatten()):
                if sums is None:
                    sums = found
                elif found is not None:
                    sums.add(found)
        if sums is not None:
            self._add(sums)

    def _check(self, probabilities: Tensor, labels: Tensor) -> None:
        wanted = (probabilities.shape[0], 1, *probabilities.shape[2:])
        if probabilities.dim() < 3 or probabilities.shape[1] != self.num_classes or tuple(labels.shape) != wanted:
            raise ValueError(
                f"found probabilities {tuple(probabilities.shape)} and labels {tuple(labels.shape)}, wanted "
                f"(B, {self.num_classes}, *spatial) and (B, 1, *spatial)"
            )
        if not probabilities.is_floating_point():
            raise ValueError(f"probabilities: found dtype {probabilities.dtype}, wanted floating point")
        if labels.numel() == 0:
            return
        for truth in labels[:, 0]:
            self._check_labels(truth)

    def _check_labels(self, labels: Tensor) -> None:
        low, high = labels.aminmax()
        if bool(low >= 0) and bool(high < self.num_classes):
            return
        labels = labels.long()
        wrong = (labels < 0) | (labels >= self.num_classes)
        if self.ignore_index is not None:
            wrong &= labels != self.ignore_index
        if bool(wrong.any()):
            raise ValueError(
                f"labels: found {labels[wrong].unique().tolist()[:5]}, wanted 0 to {self.num_classes - 1}"
                + ("" if self.ignore_index is None else f" or {self.ignore_index} (ignored)")
            )

    def _band(self, labels: Tensor) -> Tensor:
        """Return where a change of the true label ``(*spatial)`` is near, bool; one to ignored does not count."""
        band = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
        width, rows = self.boundary_width, len(labels)
        if width == 0:
            return band
        step = max(1, _BAND_VOXELS * rows // labels.numel())
        narrow = next(t for t in (torch.int8, torch.int16, torch.int32) if self.num_classes <= torch.iinfo(t).max)
        for start in range(0, rows, step):
            first, last = max(start - width, 0), min(start + step + width, rows)
            slab = labels[first:last].int()
            highest = lowest = slab.to(narrow)
            if self.ignore_index is not None:
                ignored = slab == self.ignore_index
                if bool(ignored.any()):
                    highest, lowest = highest.masked_fill(ignored, -1), lowest.masked_fill(ignored, self.num_classes)
            changed = _window_maximum(highest, width) > -_window_maximum(-lowest, width)
            band[start : start + step] = changed[start - first :][:step]
        return band

    def _parts(self, p: Tensor, truth: Tensor, near: Tensor) -> Iterator[VoxelSums | None]:
        """Yield the sums over parts of an image's voxels ``(C, N)``, in order, whatever the number of threads."""
        on_cpu = p.device.type == "cpu"
        step = _CHUNK if on_cpu else _CHUNK * _LAUNCHES
        starts = range(0, p.shape[1], step)

        def sums_from(start: int) -> VoxelSums | None:
            part = slice(start, start + step)
            return self._sums_of(p[:, part], truth[part].int(), near[part])

        threads = min(torch.get_num_threads(), len(starts)) if on_cpu else 1
        if threads == 1:
            yield from map(sums_from, starts)
            return
        with ThreadPoolExecutor(threads) as pool:
            # A few at a time: each part's sums wait here for their turn.
            for first in range(0, len(starts), 4 * threads):
                yield from pool.map(sums_from, starts[first : first + 4 * threads])

    def _sums_of(self, p: Tensor, truth: Tensor, near: Tensor) -> VoxelSums | None:
        """Return the sums over voxels ``(C, N)`` that are not ignored; ``None`` if all are."""
        if self.ignore_index is not None:
            kept = truth != self.ignore_index
            if not bool(kept.all()):
                check_probabilities(p[:, ~kept])
                p, truth, near = p[:, kept], truth[kept], near[kept]
        return voxel_sums(p, truth, near, self.background) if truth.numel() else None

    def _add(self, sums: VoxelSums) -> None:
        self.confusion += sums.confusion
        self.confidence_count += _by_region(sums.confidence_count.sum(1))
        self.confidence_correct += _by_region(sums.confidence_count[:, 1])
        self.confidence_sum += _by_region(sums.confidence_sum)
        self.class_count += by_fine_bin(sums.class_count)
        self.class_positive += by_fine_bin(sums.class_positive)
        self.class_sum += by_fine_bin(sums.class_sum)
        self.rank_count += by_rank_bin(sums.class_count)
        self.rank_positive += by_rank_bin(sums.class_positive)
        self.voxel_count += _by_region(sums.voxel_count)
        self.nll_sum += _by_region(sums.nll_sum)
        self.brier_sum += _by_region(sums.brier_sum)

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


def _by_region(by_bits: Tensor) -> Tensor:
    """Sum ``(4, ...)`` sums by foreground and boundary bit into ``(3, ...)`` sums by region."""
    return torch.stack([by_bits.sum(0), by_bits[2] + by_bits[3], by_bits[1] + by_bits[3]])


def _window_maximum(values: Tensor, width: int) -> Tensor:
    """Return the maximum over ``2 * width + 1`` voxels along every axis, axis by axis."""
    for axis in range(values.dim()):
        length, result = values.shape[axis], values.clone()
        for shift in range(1, min(width, length - 1) + 1):
            for at, source in ((0, shift), (shift, 0)):
                part = result.narrow(axis, at, length - shift)
                torch.maximum(part, values.narrow(axis, source, length - shift), out=part)
        values = result
    return values
