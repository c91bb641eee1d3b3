# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading images and writing files: one reader for training, preparation, export and the clinical site."""

from __future__ import annotations

from dacal_med.io.errors import InputError
from dacal_med.io.image import Header, Image
from dacal_med.io.monai_reader import Reader, Writer
from dacal_med.io.reading import read_header, read_image

__all__ = ["Header", "Image", "InputError", "Reader", "Writer", "read_header", "read_image"]
