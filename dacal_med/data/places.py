# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Where the files lie that a ``datalist.json`` names, on another system than the one that wrote it."""

from __future__ import annotations

import os
import unicodedata
from functools import lru_cache
from pathlib import Path


def find_place(root: Path, name: str) -> tuple[str, bool]:
    r"""Return the absolute path of a name in a file, and whether something is there.

    A file of that very name comes first; then ``~`` is a home, and umlauts may have Unicode's other normal form (one
    letter, or a letter and dots, as macOS writes them); then ``\`` separates folders, as on Windows.

    Args:
        root: the folder that names start from, absolute.
        name: as written.
    """
    try:
        literal = root / name
        if literal.exists():
            return str(literal), True
        spelled = root / Path(name).expanduser()
        for path in dict.fromkeys((spelled, root / name.replace("\\", "/"))):
            there = existing(path)
            if there.exists():
                return str(there), True
        return str(spelled), False
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, the home of somebody who is unknown
        return str(root / name), False


def existing(path: Path) -> Path:
    """Return a path as its folders spell it, where each part is there once in some normal form; else as it is."""
    if path.exists():
        return path
    place = Path(path.anchor)
    for part in path.relative_to(path.anchor).parts:
        step = place / part
        if not step.exists():
            same = _names(place, place.stat().st_mtime_ns).get(unicodedata.normalize("NFC", part), [])
            if len(same) != 1:
                return path
            step = place / same[0]
        place = step
    return place


@lru_cache(maxsize=64)
def _names(folder: Path, changed: int) -> dict[str, list[str]]:
    """The entries of a folder by their NFC form; ``changed`` is its time, so that a later state is read anew."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(unicodedata.normalize("NFC", name), []).append(name)
    return names
