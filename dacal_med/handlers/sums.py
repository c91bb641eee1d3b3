# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The sums of an evaluation as a file, from which every score and plot can be derived again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.engines.weights import load_safely
from dacal_med.errors import InputError
from dacal_med.reporting.files import write_bytes


def save_sums(path: str | Path, cases: Sequence[SegmentationStatistics], class_names: Sequence[str]) -> None:
    """Write the sums of each case, whole or not at all.

    Args:
        path: the file, e.g. ``statistics.pt``.
        cases: in the order of the data, at least one, all with the same settings.
        class_names: names by class.

    Raises:
        InputError: if it cannot be written.
    """
    content = {
        "class_names": list(class_names),
        "settings": cases[0].settings(),
        "cases": [{name: value.cpu() for name, value in case.state_dict().items()} for case in cases],
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def load_sums(path: str | Path) -> tuple[list[SegmentationStatistics], tuple[str, ...]]:
    """Read what :func:`save_sums` wrote, with ``weights_only=True``.

    Args:
        path: the file.

    Returns:
        The sums of each case and the names of the classes.

    Raises:
        InputError: if it is missing, unreadable or something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no statistics at {path}")
    content = load_safely(path, "file of statistics")
    try:
        cases = []
        for state in content["cases"]:
            case = SegmentationStatistics(**content["settings"])
            case.load_state_dict(state)
            cases.append(case)
        return cases, tuple(content["class_names"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a file of statistics: {error}") from error
