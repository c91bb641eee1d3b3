# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Where decoded images stay between iterations: in memory, on disk or nowhere, chosen by their size.

MONAI's ``CacheDataset``, ``PersistentDataset`` and ``Dataset`` give every item by its index, so that what a draw holds
does not depend on the choice. Its ``SmartCacheDataset`` gives a window of the items that moves with the epochs: a draw
would depend on when it is made and a resumed run would differ, hence it is not among them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

import monai
import psutil
import torch
from monai.data import Dataset as MonaiDataset
from monai.data import PersistentDataset
from monai.transforms import Compose

from dacal_med.core.tensors import plain
from dacal_med.data.datalist import PATIENT, Datalist
from dacal_med.data.fingerprint import describe
from dacal_med.data.in_memory import MemoryDataset
from dacal_med.io.errors import InputError
from dacal_med.io.files import file_state, replacing
from dacal_med.io.reading import read_header

KINDS = ("auto", "memory", "disk", "none")
_SHARE = 0.5  # of the memory, or of the room on the disk, that decoded images may take
_HEADERS = 32  # of each list are read; the mean stands for the others


class Caching:
    """How the data sets of a run keep their decoded images.

    ``auto`` takes the first that has room: memory, if all decoded images together need at most half of the memory that
    is available when training starts, divided among the processes of the machine; disk, if they need at most half of
    what is free there; else memory for the share of the images that fits, the others being decoded at each draw.

    Args:
        datalist: the data set.
        kind: ``auto``, ``memory``, ``disk`` or ``none``.
        folder: of the files on disk; made when needed. They may be deleted between runs.
        spacing: mm per axis to which images are resampled; None for as they are.
        smallest: size to which images are padded; None for none.
        memory: bytes that may be taken of the memory; None for the rule above.

    Raises:
        InputError: the kind is none of these.
    """

    def __init__(
        self,
        datalist: Datalist,
        kind: str = "auto",
        folder: str | Path = "cache",
        spacing: Sequence[float] | None = None,
        smallest: Sequence[int] | None = None,
        memory: int | None = None,
    ) -> None:
        if kind not in KINDS:
            raise InputError(f"cache: found {kind!r}; wanted one of {', '.join(KINDS)}.")
        self.datalist = datalist
        self.kind = kind
        self.folder = Path(folder)
        self.spacing = spacing
        self.smallest = smallest
        self.memory = memory

    @cached_property
    def decoded_bytes(self) -> int:
        """About how much the decoded images of all lists need, from headers: float32 images, labels of one byte."""
        lists = (self.datalist.source, self.datalist.target_train, self.datalist.target_val)
        total = 0.0
        for entries in lists:
            some = entries[:: max(1, len(entries) // _HEADERS)]
            if some:
                total += len(entries) * sum(self._decoded(entry) for entry in some) / len(some)
        return math.ceil(total)

    def _decoded(self, entry: Mapping[str, str]) -> int:
        header = read_header(entry["image"])
        size = list(header.shape)
        if header.affine is not None and self.spacing is not None and len(self.spacing) == len(size):
            # As many millimetres along each axis of the patient, whatever the order of the file's axes.
            pairs = zip(header.patient_spacing, self.spacing, strict=True)
            size[0] = math.ceil(size[0] * math.prod(old / new for old, new in pairs))
        voxels = math.prod(size)
        if self.smallest is not None:
            voxels = max(voxels, math.prod(self.smallest))
        return voxels * (4 * header.channels + ("label" in entry))

    @cached_property
    def chosen(self) -> tuple[str, float]:
        """What is done, ``memory``, ``disk`` or ``none``, and the share of the images in memory."""
        if self.kind != "auto":
            return self.kind, float(self.kind == "memory")
        memory = self.memory
        if memory is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            memory = int(psutil.virtual_memory().available * _SHARE / processes)
        if self.decoded_bytes <= memory:
            return "memory", 1.0
        place = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if self.decoded_bytes <= shutil.disk_usage(place).free * _SHARE:
            return "disk", 0.0
        return "memory", memory / self.decoded_bytes


def make_dataset(data: Sequence[Mapping[str, Any]], transform: Compose, caching: Caching) -> MonaiDataset:
    """The data set of some entries, as a configuration calls for it: see :class:`Caching`.

    Args:
        data: entries with the paths of files; their ``"patient"`` is left out.
        transform: from an entry to an item, without any chance.
        caching: how decoded images are kept.
    """
    kind, share = caching.chosen
    # Only some entries may have a patient, and batches want the same keys; nor do decoded images depend on it.
    entries = [{key: value for key, value in entry.items() if key != PATIENT} for entry in data]
    if kind == "disk":
        return DiskDataset(entries, transform, caching.folder)
    if kind == "none":
        return MonaiDataset(entries, transform)
    return MemoryDataset(entries, transform, cache_rate=share, progress=False)


class DiskDataset(PersistentDataset):
    """MONAI's ``PersistentDataset`` whose files are whole or not there, and hold tensors and text alone.

    The name of a file tells the entry, the size and time of the files that it names, every setting of the transforms
    and MONAI's version, so that what is stale is never read. A file that cannot be read is made anew.

    Args:
        data: entries with the paths of files.
        transform: from an entry to an item, without any chance.
        cache_dir: folder of the files.
    """

    def __init__(self, data: Sequence[Mapping[str, Any]], transform: Compose, cache_dir: str | Path) -> None:
        super().__init__(data=data, transform=transform, cache_dir=None)
        self.folder = Path(cache_dir)
        self.settings = json.dumps([monai.__version__, describe(transform)])

    def path_of(self, entry: Mapping[str, Any]) -> Path:
        """Return the file of an entry."""
        content = json.dumps([self.settings, describe(entry), [file_state(v) for v in entry.values()]])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.pt"

    def _cachecheck(self, item_transformed: Mapping[str, Any]) -> Any:
        path = self.path_of(item_transformed)
        if path.is_file():
            try:
                return torch.load(path, weights_only=True)
            except Exception as error:  # cut off, or not written by this class: whatever is wrong, decoding mends it
                warnings.warn(f"{path}: cannot be read ({type(error).__name__}); decoded anew.", stacklevel=2)
        item = self._pre_transform(deepcopy(item_transformed))  # type: ignore[no-untyped-call]
        # Clones, since a view would bring the whole of what it shows a part of.
        item = {key: plain(value).clone() if torch.is_tensor(value) else value for key, value in item.items()}
        with replacing(path) as temporary:
            torch.save(item, temporary)
        return item
