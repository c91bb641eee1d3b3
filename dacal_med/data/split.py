# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Hold out part of the labelled source images, on which anything that needs labels may be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from dacal_med.errors import InputError

Item = TypeVar("Item")


def hold_out(items: Sequence[Item], share: float = 0.2, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Split items into a training part and a held-out part.

    Args:
        items: for example the ``source`` entries of a datalist.
        share: part to hold out, in [0, 1), rounded to the nearest count; each part keeps at least one item. 0 holds
            nothing out.
        seed: the same seed and items give the same split.

    Returns:
        ``(train, held_out)``, each in the order of ``items``.

    Raises:
        InputError: ``share`` is not inside [0, 1), or there are fewer than two items to share out.
    """
    if not 0.0 <= share < 1.0:
        raise InputError(f"held_out_share: found {share}; wanted a number from 0 to below 1.")
    if share == 0.0:
        return list(items), []
    if len(items) < 2:
        raise InputError(f"'source' has {len(items)} labelled image(s); wanted at least 2, to hold one out.")
    count = min(max(round(share * len(items)), 1), len(items) - 1)
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    train = [item for index, item in enumerate(items) if index not in chosen]
    held_out = [item for index, item in enumerate(items) if index in chosen]
    return train, held_out
