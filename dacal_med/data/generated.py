# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Generated data sets: made once, complete or not at all, by several processes at the same time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dacal_med.data.datalist import FILE_NAME
from dacal_med.io.errors import InputError


def generate_once(
    place: Path, parameters: Mapping[str, Any], build: Callable[[Path], None], what: str, note_name: str
) -> str:
    """Generate a data set unless it is there.

    The folder appears complete or not at all: it is built beside its final place and renamed.

    Args:
        place: where the data set shall be; parents are created.
        parameters: all that determines it, JSON-ready; noted in the folder to tell whether it is the wanted one.
        build: writes the data set with its ``datalist.json`` into an empty folder.
        what: the data set, for messages.
        note_name: file for the parameters.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or a data set made with other parameters.
    """
    if _is_complete(place, parameters, what, note_name):
        return str(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{place.name}.building-", dir=place.parent))
    try:
        build(building)
        (building / note_name).write_text(json.dumps(parameters, indent=2) + "\n", encoding="utf-8")
        building.chmod(0o755)  # mkdtemp's folder is private, a data set is not
        try:
            if place.is_dir():
                place.rmdir()  # only an empty folder can be here, or another process has just finished
            os.rename(building, place)
        except OSError:
            if not _is_complete(place, parameters, what, note_name):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return str(place)


def _is_complete(place: Path, wanted: Mapping[str, Any], what: str, note_name: str) -> bool:
    """Whether the data set is there; raises where something else is."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return False
    note = place / note_name
    if not note.is_file() or not (place / FILE_NAME).is_file():
        raise InputError(f"{place}: exists but holds no complete {what}; wanted an empty or absent folder.")
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{note}: not valid JSON ({error}); delete the folder to make the {what} again.") from error
    if found != wanted:
        raise InputError(
            f"{place}: holds a {what} made with {found}; wanted {dict(wanted)}. "
            "Choose another folder or delete this one."
        )
    return True
