# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoded images in memory that loading processes share, however these are started.

A forked process has what its parent has. One that starts anew (``spawn``, ``forkserver``: the default on macOS, and
from Python 3.14 on Linux) gets the data set by pickling, and PyTorch passes an open file for each tensor: some hundreds
are more than it can pass. Here all tensors of a type lie in one piece of memory, which is passed once.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from monai.data import CacheDataset
from torch import Tensor

_SHARED = Path("/dev/shm")  # where Linux keeps shared memory; containers often have very little of it
_Place = tuple[torch.dtype, int, torch.Size]


class MemoryDataset(CacheDataset):
    """MONAI's ``CacheDataset`` whose cached tensors reach every loading process in one piece for each type.

    Where the system has no room to share them, each process gets a copy. Tensors with meta data are passed one by one.
    """

    def _transform(self, index: int) -> Any:
        item = super()._transform(index)
        if not isinstance(item, dict):
            return item
        # A copy of a part would bring the whole with it.
        return {key: value.clone() if _is_part(value) else value for key, value in item.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Everything, with the cached tensors in one piece; they lie there from now on, here too."""
        state = dict(vars(self))
        packed = state.pop("_packed", None)
        if packed is None and not _tensors(self._cache):
            return state
        if packed is None:
            packed = self._packed = _pack(self._cache)
            self._cache = _unpack(*packed)
        pieces, items = packed
        if all(piece.is_shared() for piece in pieces.values()) or _room_for(pieces):
            state["_cache"] = (pieces, items)
        else:
            state["_cache"] = ({kind: piece.numpy() for kind, piece in pieces.items()}, items)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what :meth:`__getstate__` gave."""
        vars(self).update(state)
        if isinstance(self._cache, tuple):
            pieces, items = self._cache
            self._packed = {kind: torch.as_tensor(piece) for kind, piece in pieces.items()}, items
            self._cache = _unpack(*self._packed)


def _is_part(value: Any) -> bool:
    return type(value) is Tensor and value.untyped_storage().nbytes() != value.nbytes


def _tensors(items: Any) -> list[Tensor]:
    """The plain tensors of cached items, in order."""
    return [v for item in items if isinstance(item, dict) for v in item.values() if type(v) is Tensor]


def _pack(items: Any) -> tuple[dict[torch.dtype, Tensor], list[Any]]:
    """Return the tensors end to end by type, and the items with their places instead of them."""
    pieces = {}
    for kind in dict.fromkeys(tensor.dtype for tensor in _tensors(items)):
        pieces[kind] = torch.cat([tensor.flatten() for tensor in _tensors(items) if tensor.dtype == kind])
    ends = dict.fromkeys(pieces, 0)

    def place(value: Any) -> Any:
        if type(value) is not Tensor:
            return value
        start, ends[value.dtype] = ends[value.dtype], ends[value.dtype] + value.numel()
        return _Placed((value.dtype, start, value.shape))

    return pieces, [{k: place(v) for k, v in item.items()} if isinstance(item, dict) else item for item in items]


def _unpack(pieces: dict[torch.dtype, Tensor], items: list[Any]) -> list[Any]:
    def found(value: Any) -> Any:
        if not isinstance(value, _Placed):
            return value
        kind, start, shape = value.place
        return pieces[kind][start : start + math.prod(shape)].view(shape)

    return [{k: found(v) for k, v in item.items()} if isinstance(item, dict) else item for item in items]


class _Placed:
    """Where a tensor lies: type, first element, shape."""

    def __init__(self, place: _Place) -> None:
        self.place = place


def _room_for(pieces: dict[torch.dtype, Tensor]) -> bool:
    needed = sum(piece.nbytes for piece in pieces.values())
    return not _SHARED.is_dir() or needed < shutil.disk_usage(_SHARED).free // 2
