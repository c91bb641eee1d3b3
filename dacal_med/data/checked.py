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
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path

from dacal_med.io.files import file_state, given_path, write_json

State = list[list[int]]
_FORMAT = 2  # another number where more is checked, so that all is read again
_SECONDS = 30.0  # between writes, so that a run that is killed while it checks goes on from there


class CheckedFiles:
    """A record on disk of the image and label files that were good, each as it was then: size and time of its files.

    An image was not looked at as a label, nor a label as an image: each is kept apart.

    Args:
        path: the file; empty for no record. What cannot be read is told in a warning and checked anew.
        rank: this process, of several that each check their share: those above 0 write files of their own beside it.
            All of them are read.

    Raises:
        InputError: the record cannot lie there.
    """

    def __init__(self, path: str | Path = "", rank: int = 0) -> None:
        self._path = given_path(path, "checked") if path else None
        self._own = self._path and (self._path.with_stem(f"{self._path.stem}-{rank}") if rank else self._path)
        self._known = _Files()
        self._new = _Files()
        self._written = time.monotonic()
        for file in sorted(self._path.parent.glob(f"{escape(self._path.stem)}*.json")) if self._path else ():
            found = _read(file)
            self._known.update(found)
            if file == self._own:
                self._new = found

    def has_image(self, path: str) -> bool:
        """Whether an image is known to be good."""
        state = self._known.images.get(path)
        return bool(state) and state == file_state(path)

    def label_values(self, path: str) -> dict[int, int] | None:
        """Return how often each value occurs in a label that is known to be good, ``None`` if it is not."""
        state, values = self._known.labels.get(path, ([], {}))
        return values if state and state == file_state(path) else None

    def add_image(self, path: str) -> None:
        """Remember an image that is good."""
        self._known.images[path] = self._new.images[path] = file_state(path)
        self._write_now_and_then()

    def add_label(self, path: str, values: Mapping[int, int]) -> None:
        """Remember a label that is good, with how often each value occurs."""
        found = {value: number for value, number in values.items() if number}
        self._known.labels[path] = self._new.labels[path] = (file_state(path), found)
        self._write_now_and_then()

    def write(self) -> None:
        """Write what is known to be good, if there is a record and anything to write.

        Raises:
            InputError: it cannot be written; an earlier file stays as it was.
        """
        if self._own and (self._new.images or self._new.labels):
            labels = {path: [state, list(values.items())] for path, (state, values) in self._new.labels.items()}
            write_json(self._own, {"format": _FORMAT, "images": self._new.images, "labels": labels})
        self._written = time.monotonic()

    def _write_now_and_then(self) -> None:
        if time.monotonic() - self._written > _SECONDS:
            self.write()


@dataclass
class _Files:
    """States of good images by path, and of good labels with how often each value occurs."""

    images: dict[str, State] = field(default_factory=dict)
    labels: dict[str, tuple[State, dict[int, int]]] = field(default_factory=dict)

    def update(self, other: _Files) -> None:
        self.images.update(other.images)
        self.labels.update(other.labels)


def _read(file: Path) -> _Files:
    """What a record holds; nothing, after a warning, if it is damaged, and nothing if it is of another format."""
    try:
        content = json.loads(file.read_bytes())
        if content["format"] != _FORMAT:
            return _Files()
        images = {path: _state(state) for path, state in content["images"].items()}
        labels = {path: (_state(state), _values(counts)) for path, (state, counts) in content["labels"].items()}
        return _Files(images, labels)
    # A number of thousands of digits is a ValueError, lists in lists in lists are a RecursionError.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        warnings.warn(f"{file}: cannot be read ({type(error).__name__}); files are checked anew.", stacklevel=3)
        return _Files()


def _state(state: object) -> State:
    if not isinstance(state, list) or not all(_whole(pair) and len(pair) == 2 for pair in state):
        raise ValueError(f"found {state!r}, wanted size and time of each file")
    return state


def _values(counts: object) -> dict[int, int]:
    if not isinstance(counts, list) or not all(_whole(pair) and len(pair) == 2 and pair[1] > 0 for pair in counts):
        raise ValueError(f"found {counts!r}, wanted each value with its number")
    return dict(counts)


def _whole(numbers: object) -> bool:
    return isinstance(numbers, list) and all(type(number) is int for number in numbers)  # true is an int, too
