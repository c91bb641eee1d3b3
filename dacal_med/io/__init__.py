# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading images and writing files: one reader for training, preparation, export and the clinical site."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dacal_med.io.errors import InputError
    from dacal_med.io.image import Header, Image
    from dacal_med.io.monai_reader import Reader, Writer
    from dacal_med.io.reading import read_header, read_image

__all__ = ["Header", "Image", "InputError", "Reader", "Writer", "read_header", "read_image"]

_FILES = {"InputError": "errors", "Header": "image", "Image": "image", "Reader": "monai_reader"}
_FILES |= {"Writer": "monai_reader", "read_header": "reading", "read_image": "reading"}


def __getattr__(name: str) -> Any:
    # What checks an export's checksums imports this package before anything else is installed.
    if name in _FILES:
        return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
