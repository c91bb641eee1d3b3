# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Files whose voxels were read and found good, remembered from one start of a run to the next.

A run that a cluster preempts starts many times; reading tens of thousands of images each time costs it the better part
of an hour.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from dacal_med.data.fingerprint import file_state
from dacal_med.reporting.files import write_json

_FORMAT = 1  # another number where more is checked, so that all is read again
_SECONDS = 30.0  # between writes, so that a run that is killed while it checks goes on from there


class CheckedFiles:
    """A record on disk of the image and label files that were good, each as it was then: size and time of its files.

    Args:
        path: the file; empty for no record. What cannot be read is told in a warning and checked anew.
        rank: this process, of several that each check their share: those above 0 write files of their own beside it.
            All of them are read.
    """

    def __init__(self, path: str | Path = "", rank: int = 0) -> None:
        self._path = Path(path) if path else None
        self._own = self._path and (self._path.with_stem(f"{self._path.stem}-{rank}") if rank else self._path)
        self._known: dict[str, list[object]] = {}
        self._new: dict[str, list[object]] = {}
        self._written = time.monotonic()
        for file in sorted(self._path.parent.glob(f"{self._path.stem}*.json")) if self._path else ():
            found = self._read(file)
            self._known.update(found)
            if file == self._own:
                self._new = found

    def values(self, path: str) -> dict[int, int] | None:
        """Return how often each value occurs in a file that is known to be good, ``None`` if it is not.

        Of images no values are kept: the dictionary is empty.
        """
        state, counts = self._known.get(path, [None, None])
        if state is None or state != file_state(path) or not isinstance(counts, list):
            return None
        return {int(value): int(number) for value, number in counts}

    def add(self, path: str, values: Mapping[int, int] | None = None) -> None:
        """Remember a file that is good, of a label with how often each value occurs."""
        counts = [[value, number] for value, number in (values or {}).items() if number]
        self._known[path] = self._new[path] = [file_state(path), counts]
        if time.monotonic() - self._written > _SECONDS:
            self.write()

    def write(self) -> None:
        """Write what is known to be good, if there is a record and anything to write."""
        if self._own and self._new:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._own, {"format": _FORMAT, "files": self._new})
        self._written = time.monotonic()

    @staticmethod
    def _read(file: Path) -> dict[str, list[object]]:
        try:
            content = json.loads(file.read_bytes())
            if content["format"] != _FORMAT:
                return {}
            return {str(path): [state, counts] for path, (state, counts) in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            warnings.warn(f"{file}: cannot be read ({type(error).__name__}); files are checked anew.", stacklevel=3)
            return {}
