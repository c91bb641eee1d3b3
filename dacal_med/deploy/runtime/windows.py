# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Sliding-window inference whose memory is that of one row of windows.

The windows, their weights and the blending are those of MONAI's ``SlidingWindowInferer``. It keeps the probabilities of
the whole image; here windows come in the order of one axis, and planes that no later window reaches go to the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers import SlidingWindowInferer
from monai.utils import BlendMode, ensure_tuple_rep, fall_back_tuple
from torch import Tensor
from torch.nn.functional import pad

from dacal_med.deploy.runtime.planes import PlaneFile
from dacal_med.io.errors import InputError

Predictor = Callable[[Tensor], Tensor]
"""Gives class probabilities ``(B, C, *window)`` of windows ``(B, channels, *window)``."""


@dataclass(frozen=True)
class Windows:
    """How an image is cut into windows.

    Attributes:
        roi_size: size of a window.
        overlap: share of a window that the next one covers, per axis.
        batch_size: windows that the network sees at once.
        mode: "gaussian" or "constant" weights.
        sigma_scale: of the Gaussian, in window sizes.
    """

    roi_size: Sequence[int] | int
    overlap: float | Sequence[float] = 0.5
    batch_size: int = 4
    mode: str = "gaussian"
    sigma_scale: float | Sequence[float] = 0.125

    @classmethod
    def of(cls, inferer: Any) -> Windows:
        """Take them from a bundle's inferer.

        Raises:
            InputError: it is none with sliding windows.
        """
        if not isinstance(inferer, SlidingWindowInferer):
            raise InputError(f"inferer: found {type(inferer).__name__}; wanted SlidingWindowInferer")
        mode = BlendMode(inferer.mode).value
        return cls(inferer.roi_size, inferer.overlap, inferer.sw_batch_size, mode, inferer.sigma_scale)


def predict(
    image: Tensor,
    predictor: Predictor,
    windows: Windows,
    axis: int,
    path: Path,
    progress: Callable[[float], None],
) -> PlaneFile:
    """Predict an image window by window and blend the probabilities.

    Args:
        image: ``(channels, *n)``, on the CPU.
        predictor: gives probabilities of windows, on the CPU.
        windows: how the image is cut.
        axis: spatial axis along which windows come and planes leave.
        path: where the probabilities go.
        progress: told the share that is done.

    Returns:
        The open file of class probabilities, its planes along ``axis``, the other axes in order.

    Raises:
        InputError: the network gave values that are not finite.
    """
    original = image.shape[1:]
    dims = len(original)
    roi = fall_back_tuple(windows.roi_size, original)
    missing = [max(0, side - size) for side, size in zip(roi, original, strict=True)]
    before = [gap // 2 for gap in missing]
    if any(missing):
        sides = [(low, gap - low) for low, gap in zip(before, missing, strict=True)]
        image = pad(image, [n for side in reversed(sides) for n in side])
    size = tuple(image.shape[1:])
    overlap = ensure_tuple_rep(windows.overlap, dims)
    interval = [r if r == n else max(1, int(r * (1 - o))) for r, n, o in zip(roi, size, overlap, strict=True)]
    places = sorted(dense_patch_slices(size, roi, interval), key=lambda place: place[axis].start)
    weight = compute_importance_map(roi, mode=windows.mode, sigma_scale=windows.sigma_scale, dtype=torch.float32)
    inner = [slice(low, low + n) for low, n in zip(before, original, strict=True)]
    blender = _Blender(size, roi[axis], axis, inner, path)
    done = 0
    for start, group in groupby(places, key=lambda place: place[axis].start):
        blender.advance(start)
        row = list(group)
        for first in range(0, len(row), windows.batch_size):
            batch = row[first : first + windows.batch_size]
            found = predictor(torch.stack([image[(slice(None), *place)] for place in batch]))
            if not bool(torch.isfinite(found).all()):
                raise InputError("the network gave values that are not finite; wanted probabilities")
            for place, probabilities in zip(batch, found, strict=True):
                blender.add(place, probabilities, weight)
            done += len(batch)
            progress(done / len(places))
    return blender.close()


class _Blender:
    """Weighted sums of the planes that windows still reach; finished ones go to the file."""

    def __init__(self, size: Sequence[int], thick: int, axis: int, inner: Sequence[slice], path: Path) -> None:
        self.axis = axis
        self.thick = thick
        self.others = [k for k in range(len(size)) if k != axis]
        self.plane = [size[k] for k in self.others]
        self.inner = inner
        self.path = path
        self.first = 0
        self.weights = torch.zeros(thick, *self.plane)
        self.sums: Tensor | None = None
        self.file: PlaneFile | None = None

    def advance(self, start: int) -> None:
        """Write the planes before ``start``, which no later window reaches."""
        count = min(start - self.first, self.thick)
        if count <= 0 or self.sums is None:
            self.first = start
            return
        self._flush(count)
        for buffer in (self.sums, self.weights[None]):
            kept = buffer[:, count:].clone()
            buffer[:, : kept.shape[1]] = kept
            buffer[:, kept.shape[1] :] = 0
        self.first = start

    def add(self, place: Sequence[slice], probabilities: Tensor, weight: Tensor) -> None:
        """Add one window."""
        if self.sums is None:
            channels = probabilities.shape[0]
            self.sums = torch.zeros(channels, self.thick, *self.plane)
            inner = self.inner[self.axis]
            shape = [self.inner[k].stop - self.inner[k].start for k in self.others]
            self.file = PlaneFile(self.path, inner.stop - inner.start, channels, shape)
        where = (slice(None), *[place[k] for k in self.others])
        self.sums[(slice(None), *where)] += (probabilities * weight).movedim(1 + self.axis, 1)
        self.weights[where] += weight.movedim(self.axis, 0)

    def close(self) -> PlaneFile:
        """Write what is left."""
        assert self.file is not None  # every image has a window
        self._flush(self.thick)
        return self.file

    def _flush(self, count: int) -> None:
        """Write ``count`` planes, without the padding."""
        assert self.sums is not None and self.file is not None
        inner = self.inner[self.axis]
        low, high = max(self.first, inner.start), min(self.first + count, inner.stop)
        if low >= high:
            return
        planes = slice(low - self.first, high - self.first)
        others = [self.inner[k] for k in self.others]
        mean = self.sums[(slice(None), planes, *others)] / self.weights[(planes, *others)]
        self.file.write(low - inner.start, mean)
