# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The deployed network's weights: one plain ``state_dict``, as bundles keep it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dacal_med.errors import InputError
from dacal_med.reporting.files import write_bytes


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write a network's plain ``state_dict`` (CPU tensors), whole or not at all.

    Args:
        network: the deployed network.
        path: e.g. ``models/model.pt``; its folder is made.

    Raises:
        InputError: if it cannot be written; an earlier file stays as it was.
    """
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in network.state_dict().items()}, buffer)
    write_bytes(path, buffer.getvalue())


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Load weights that :func:`save_weights` wrote, by ``weights_only=True``.

    Args:
        network: of the same architecture.
        path: e.g. ``models/model.pt``.

    Raises:
        InputError: if the file is missing, unreadable or of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights at {path}; train first, or give --model_file")
    state = load_safely(path, "weights file")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds another network than this configuration's (other classes, channels or layers?): "
            f"{str(error)[:300]}"
        ) from error


def load_safely(path: Path, kind: str) -> Any:
    """Read a file of tensors and plain values, on the CPU and without unpickling anything else.

    Args:
        path: the file.
        kind: what it should be, for the message.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Every way a damaged or foreign file can fail ends in one message; the cause stays attached.
        raise InputError(f"{path} is not a readable {kind}: {type(error).__name__}: {str(error)[:200]}") from error
