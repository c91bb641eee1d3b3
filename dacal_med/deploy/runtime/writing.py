# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Output images in the input's own geometry, written a slab at a time, whole or not at all."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from dacal_med.io.files import replacing
from dacal_med.io.image import Header
from dacal_med.io.nifti import result_header


class SlabWriter(Protocol):
    """Takes an image slab by slab, in the order of its last axis."""

    def add(self, slab: np.ndarray) -> None:
        """Add the next slab ``(*n, planes)``."""


class _NiftiStream:
    def __init__(self, stream: gzip.GzipFile, dtype: np.dtype) -> None:
        self.stream = stream
        self.dtype = dtype

    def add(self, slab: np.ndarray) -> None:
        self.stream.write(np.asarray(slab, self.dtype).tobytes(order="F"))


class _Picture:
    def __init__(self) -> None:
        self.slabs: list[np.ndarray] = []

    def add(self, slab: np.ndarray) -> None:
        self.slabs.append(np.asarray(slab))


@contextmanager
def nifti(path: Path, image: Header, dtype: type) -> Iterator[SlabWriter]:
    """Write a compressed NIfTI file slab by slab.

    Args:
        path: the file, ending in ``.nii.gz``.
        image: of which this is a result: see :func:`dacal_med.io.nifti.result_header`.
        dtype: of the values.

    Raises:
        InputError: if it cannot be written; nothing is left then.
    """
    assert image.affine is not None
    header = result_header(image.shape, dtype, image.affine, image.forms)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with (
        replacing(path, ".nii.gz") as temporary,
        temporary.open("wb") as raw,
        # Without a time and a name, equal images are equal files.
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=1, mtime=0) as stream,
    ):
        header.write_to(stream)
        yield _NiftiStream(stream, np.dtype(dtype))


@contextmanager
def picture(path: Path, scale: float) -> Iterator[SlabWriter]:
    """Write a grey 8-bit picture, given slab by slab as ``(width, height)``.

    Args:
        path: the file, ending in ``.png``.
        scale: what values are multiplied with.

    Raises:
        InputError: if it cannot be written; nothing is left then.
    """
    collected = _Picture()
    with replacing(path, ".png") as temporary:
        yield collected
        whole = np.concatenate(collected.slabs, axis=-1)
        Image.fromarray(np.rint(whole * scale).astype(np.uint8).T).save(temporary)
