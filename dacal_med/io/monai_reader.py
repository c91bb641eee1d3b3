# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The reader and the writer for MONAI's ``LoadImaged`` and ``SaveImaged``."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import ImageReader, NibabelWriter
from monai.utils import ensure_tuple

from dacal_med.io.errors import InputError
from dacal_med.io.image import Image
from dacal_med.io.nifti import Forms
from dacal_med.io.reading import read_image

Paths = Sequence[PathLike[str] | str] | PathLike[str] | str


class Reader(ImageReader):
    """Reads whatever :func:`dacal_med.io.read_image` reads, as ``LoadImaged("image", reader="dacal_med.io.Reader")``.

    Several files become the channels of one image.

    Args:
        as_label: whether the images are labels: pictures then give the numbers of their palette.
    """

    version = 1  # raise when the same file gives other voxels, so that caches are made anew

    def __init__(self, as_label: bool = False) -> None:
        self.as_label = as_label
        self.settings = (self.version, as_label)

    def verify_suffix(self, filename: Paths) -> bool:
        """Return True: a file of another kind is refused with a message when it is read."""
        return True

    def read(self, data: Paths, **kwargs: Any) -> list[str]:
        """Return the paths. They are read by :meth:`get_data`, since MONAI tries other readers where this fails."""
        return [str(path) for path in ensure_tuple(data)]

    def get_data(self, img: Sequence[str]) -> tuple[np.ndarray, dict[str, Any]]:
        """Read images.

        Args:
            img: paths.

        Returns:
            ``(channels, *spatial)`` and metadata as MONAI's transforms want it.

        Raises:
            InputError: one cannot be read, or they are not on one grid.
        """
        images = [read_image(path, as_label=self.as_label) for path in img]
        for path, image in zip(img[1:], images[1:], strict=True):
            if not _same_grid(images[0], image):
                raise InputError(f"{path}: lies on another grid than {img[0]}; wanted channels of one image")
        header = images[0].header
        affine = np.eye(4) if header.affine is None else header.affine
        meta: dict[str, Any] = {"affine": affine, "original_affine": affine.copy(), "space": "RAS"}
        meta |= {"spatial_shape": np.asarray(header.shape), "original_channel_dim": 0}
        if header.forms is not None:
            meta["nifti_forms"] = header.forms.numbers
        return np.concatenate([image.array for image in images]), meta


class Writer(NibabelWriter):
    """Writes NIfTI with the forms, codes and unit of the image that came as NIfTI, for ``SaveImaged``."""

    forms: Forms | None = None

    def set_metadata(self, meta_dict: Any | None = None, resample: bool = True, **options: Any) -> None:
        """Take the geometry of an image from what :class:`Reader` said of it."""
        super().set_metadata(meta_dict, resample, **options)
        packed = (meta_dict or {}).get("nifti_forms")
        self.forms = None if packed is None else Forms(np.asarray(packed, dtype=np.float64).ravel())

    def write(self, filename: PathLike[str] | str, verbose: bool = False, **options: Any) -> None:
        """Write the file."""
        super().write(filename, verbose, **options)
        if self.forms is not None:
            image: Any = nib.load(filename)
            self.forms.apply(image.header)
            nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), None, image.header), filename)


def _same_grid(one: Image, other: Image) -> bool:
    first, second = one.header, other.header
    if first.shape != second.shape or (first.affine is None) != (second.affine is None):
        return False
    if first.affine is None or second.affine is None:
        return True
    return bool(np.allclose(first.affine, second.affine, atol=1e-3 * min(first.spacing)))
