# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The deployed network's weights: one plain ``state_dict``, as bundles keep it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import torch
from torch import nn

from dacal_med.core.weights import load_safely
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path, write_bytes


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
    path = given_path(path, "weights")
    if not path.is_file():
        raise InputError(f"no weights at {path}; train first, or give --model_file")
    state = load_safely(path, "weights file")
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} holds another network than this configuration's (other classes, channels or layers?)"
            f"{_trained_for(path)}: {str(error)[:300]}"
        ) from error


def _trained_for(path: Path) -> str:
    """Return which classes the file beside the weights says they were trained for, or nothing without such a file."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return ""
    try:
        names = json.loads(beside.read_bytes())["class_names"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"; {beside} does not say for which classes ({type(error).__name__})"
    return f"; {beside} says that it was trained for {len(names)} classes ({', '.join(map(str, names))})"
