# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Splits by patient, where the owner or the literature gives none, and blocks that stand for patients in a stack."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.preparation.cases import Part

_BLOCKS = 5  # one is the share of the source that is held out by default


def section_blocks(stack: str, sections: int) -> list[str]:
    """Name a block of neighbouring sections for each section of a stack, in order: the patients of a lone stack.

    Neighbouring sections show much the same; of blocks that are held out whole, only the ends have neighbours.

    Args:
        stack: its name.
        sections: how many it has.
    """
    blocks = min(_BLOCKS, sections)
    return [f"{stack}, block {section * blocks // sections + 1}" for section in range(sections)]


def split_patients(patients: Iterable[str], shares: dict[Part, Fraction], seed: int) -> dict[str, Part]:
    """Share out patients at random.

    Args:
        patients: each once or more; their order does not matter.
        shares: what part of them goes where; adds up to 1.
        seed: the same seed, patients and shares give the same split.

    Returns:
        The part of each patient. Every part has at least one; beyond that counts are rounded down, and what is left
        over goes to the first part.

    Raises:
        InputError: there are fewer patients than parts.
    """
    if sum(shares.values()) != 1:
        raise ValueError(f"shares add up to {sum(shares.values())}, not to 1")
    ordered = sorted(set(patients))
    if len(ordered) < len(shares):
        raise InputError(f"found {len(ordered)} patient(s) to split; wanted at least {len(shares)}: {ordered}.")
    counts = {part: max(1, int(share * len(ordered))) for part, share in shares.items()}
    first = next(iter(shares))
    counts[first] += len(ordered) - sum(counts.values())
    drawn = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    parts: dict[str, Part] = {}
    for part, count in counts.items():
        parts.update(dict.fromkeys(drawn[:count], part))
        drawn = drawn[count:]
    return parts
