# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading files of weights without unpickling."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from dacal_med.io.errors import InputError


def load_safely(path: Path, kind: str) -> Any:
    """Read a file of tensors and plain values, on the CPU and without unpickling anything else.

    The sums of the content that ``torch.save`` writes are checked, which ``torch.load`` does not do.

    Args:
        path: the file.
        kind: what it should be, for the message.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"{damaged} in it is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Every way a damaged or foreign file can fail ends in one message; the cause stays attached.
        raise InputError(f"{path} is not a readable {kind}: {type(error).__name__}: {str(error)[:200]}") from error
