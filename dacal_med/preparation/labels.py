# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Written-out label tables: the owner's values and names, and what they become here."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dacal_med.io.errors import InputError

_MAX_CLASS = 254  # label files are uint8
_IGNORED, IGNORE = 255, "ignore"  # the customary value that counts for nothing, and its name in datalist.json
_BLOCK = 1 << 22  # voxels


@dataclass(frozen=True)
class LabelRow:
    """One line of a label table.

    Attributes:
        low: smallest value of the owner's files that the row covers.
        high: largest such value; equal to ``low`` but for ranges (instance numbers, grey values).
        original: what the owner calls it.
        value: the value in the prepared files, 0 to 254, or 255 for what counts for nothing.
        name: the class in ``datalist.json``.
    """

    low: int
    high: int
    original: str
    value: int
    name: str

    @property
    def found_as(self) -> str:
        """The owner's value or range, as text."""
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class LabelTable:
    """How the values of a data set become classes; a value in none of the rows is an error, never background.

    Attributes:
        rows: in any order; ranges do not overlap, a value has one name, 255 is "ignore".
        first: the name of value 0; the background, unless every class is something.
    """

    rows: tuple[LabelRow, ...]
    first: str = "background"

    def __post_init__(self) -> None:
        ordered = sorted(self.rows, key=lambda row: row.low)
        for row in ordered:
            if row.low > row.high or (not 0 <= row.value <= _MAX_CLASS and (row.value, row.name) != (_IGNORED, IGNORE)):
                raise ValueError(f"label table: row {row} has an empty range or a value outside 0..{_MAX_CLASS}")
            if self.names[row.value] != row.name:
                raise ValueError(f"label table: value {row.value} is named {row.name} and {self.names[row.value]}")
        for first, second in pairwise(ordered):
            if second.low <= first.high:
                raise ValueError(f"label table: {first.found_as} and {second.found_as} overlap")
        if self.names.get(0) != self.first:
            raise ValueError(f"label table: value 0 is not the {self.first}")

    @classmethod
    def of(cls, *rows: tuple[int | tuple[int, int], str, int, str], first: str = "background") -> LabelTable:
        """Build a table from ``(owner's value or inclusive range, owner's name, our value, our name)``."""
        made = []
        for found, original, value, name in rows:
            low, high = found if isinstance(found, tuple) else (found, found)
            made.append(LabelRow(low, high, original, value, name))
        return cls(tuple(made), first)

    @property
    def names(self) -> dict[int, str]:
        """Class name of each value in the prepared files, by rising value."""
        return {row.value: row.name for row in sorted(self.rows, key=lambda row: (row.value, row.low))}

    def remap(self, array: np.ndarray[Any, Any], path: str | Path) -> np.ndarray[Any, Any]:
        """Replace the owner's values by ours.

        Args:
            array: label values, of any shape and numeric type.
            path: the file they are from, for the message.

        Returns:
            uint8 array of the same shape.

        Raises:
            InputError: a value is in no row, or is not a whole number.
        """
        ordered = sorted(self.rows, key=lambda row: row.low)
        if array.dtype in (np.uint8, np.uint16):
            return self._look_up(array, path)
        lows = np.array([row.low for row in ordered], dtype=np.float64)
        highs = np.array([row.high for row in ordered], dtype=np.float64)
        values = np.array([row.value for row in ordered], dtype=np.uint8)
        flat = array.reshape(-1)
        result = np.empty(flat.size, dtype=np.uint8)
        strange: list[np.ndarray[Any, Any]] = []
        # In blocks: the intermediate arrays are many times as large as the labels of a CT.
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            row_of = np.searchsorted(lows, block, side="right") - 1
            covered = (row_of >= 0) & (block <= highs[row_of]) & (block == np.floor(block))
            strange.append(block[~covered])
            result[start : start + _BLOCK] = values[row_of]
        uncovered = np.concatenate(strange) if strange else flat
        if uncovered.size:
            raise self._uncovered(uncovered, path)
        return result.reshape(array.shape)

    def _look_up(self, array: np.ndarray[Any, Any], path: str | Path) -> np.ndarray[Any, Any]:
        """Remap small integers, many times faster than by search."""
        size = int(np.iinfo(array.dtype).max) + 1
        values, covered = np.zeros(size, dtype=np.uint8), np.zeros(size, dtype=bool)
        for row in self.rows:
            values[max(row.low, 0) : row.high + 1] = row.value
            covered[max(row.low, 0) : row.high + 1] = True
        found = np.bincount(array.reshape(-1), minlength=size).astype(bool)
        if (found & ~covered).any():
            raise self._uncovered(array[~covered[array]], path)
        return values[array]

    def _uncovered(self, found: np.ndarray[Any, Any], path: str | Path) -> InputError:
        wanted = ", ".join(row.found_as for row in sorted(self.rows, key=lambda row: row.low))
        return InputError(
            f"{path}: found the label value(s) {[float(value) for value in np.unique(found)[:8]]} in "
            f"{found.size} voxel(s); wanted only {wanted}, those of the label table."
        )

    def count(self, array: np.ndarray[Any, Any]) -> dict[str, int]:
        """Voxels per class name of a remapped array."""
        found = np.bincount(array.reshape(-1), minlength=_IGNORED + 1)
        return {name: int(found[value]) for value, name in self.names.items()}
