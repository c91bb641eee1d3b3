# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""An array on the disk, written and read plane by plane: what would not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor


class PlaneFile:
    """Channels x planes as float32 in a file; only the planes asked for are in memory.

    Args:
        path: the file, made anew.
        planes: how many.
        channels: of each voxel.
        plane_shape: size of a plane.
    """

    def __init__(self, path: Path, planes: int, channels: int, plane_shape: Sequence[int]) -> None:
        self.planes = planes
        self.channels = channels
        self.plane_shape = tuple(plane_shape)
        self.bytes_per_plane = 4 * channels * int(np.prod(self.plane_shape, dtype=np.int64))
        self._stream = path.open("w+b")

    def __enter__(self) -> PlaneFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def write(self, start: int, values: Tensor) -> None:
        """Write planes ``(channels, planes, *plane)`` from plane ``start`` on."""
        self._stream.seek(start * self.bytes_per_plane)
        self._stream.write(values.movedim(1, 0).contiguous().numpy().data)

    def read(self, start: int, stop: int) -> Tensor:
        """Read planes as ``(channels, planes, *plane)``."""
        self._stream.seek(start * self.bytes_per_plane)
        values = np.empty((stop - start, self.channels, *self.plane_shape), np.float32)
        found = self._stream.readinto(values.data)
        if found != values.nbytes:
            raise OSError(f"temporary file: found {found} bytes; wanted {values.nbytes}")
        return torch.from_numpy(values).movedim(0, 1)
