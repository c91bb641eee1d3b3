# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Looking into downloaded folders, and saying what was found and what was wanted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path

_DEPTH = 2  # archives unpack into a folder of their own, sometimes into one more


def listing(folder: Path, limit: int = 6) -> str:
    """A few names in a folder, for a message."""
    names = [path.name for path in entries(folder)]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return (", ".join(names[:limit]) + more) or "nothing"


def entries(folder: Path) -> list[Path]:
    """The visible contents of a folder, by name; operating systems leave hidden files behind."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def find_root(folder: Path, markers: Sequence[str], what: str) -> Path:
    """Find the folder that an archive unpacked to: the one given, or one at most two levels below.

    Args:
        folder: as given by the user.
        markers: relative paths that must all be there.
        what: the data set, for the message.

    Raises:
        InputError: ``folder`` is no folder, no folder holds all markers, or several do.
    """
    folder = given_path(folder, home=True)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted {what} with {', '.join(markers)}.")
    level = [folder]
    for _ in range(_DEPTH + 1):
        found = [place for place in level if all((place / marker).exists() for marker in markers)]
        if len(found) > 1:
            raise InputError(f"{folder}: found {what} in {found[0]} and in {found[1]}; wanted one of them alone.")
        if found:
            return found[0]
        level = [path for place in level for path in entries(place) if path.is_dir()]
    raise InputError(f"{folder}: found {listing(folder)}; wanted {what} with {', '.join(markers)}.")


def matching(folder: Path, pattern: str) -> dict[str, Path]:
    """Files and folders whose whole name matches, by their first group, in the order of their names.

    Args:
        folder: must exist.
        pattern: regular expression with one group, the key; case is ignored.

    Raises:
        InputError: ``folder`` is missing, or two names have the same key.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; wanted one with files named like '{pattern}'.")
    found: dict[str, Path] = {}
    for path in entries(folder):
        match = re.fullmatch(pattern, path.name, re.IGNORECASE)
        if match is None:
            continue
        key = match.group(1)
        if key in found:
            raise InputError(f"{folder}: found {found[key].name} and {path.name} for {key}; wanted one of them.")
        found[key] = path
    return found


def require_same(images: dict[str, Path], labels: dict[str, Path], folder: Path, what: str) -> None:
    """Check that every image has its label and every label its image.

    Raises:
        InputError: naming those without a counterpart.
    """
    for one, other, missing in ((images, labels, "label"), (labels, images, "image")):
        alone = sorted(set(one) - set(other))
        if alone:
            more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
            raise InputError(
                f"{folder}: found no {missing} for {', '.join(alone[:5])}{more}; wanted one for each {what}."
            )


def require_all(found: Iterable[str], wanted: Iterable[str], folder: Path, what: str, *, partial: bool) -> None:
    """Check that everything listed by the owner is there.

    Raises:
        InputError: something is missing and ``partial`` is not set.
    """
    missing = sorted(set(wanted) - set(found))
    if missing and not partial:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(
            f"{folder}: missing {what} {', '.join(missing[:5])}{more}; wanted all that the owner lists "
            "(--partial prepares what is there)."
        )


def require_count(found: int, wanted: int | Sequence[int], folder: Path, what: str, *, partial: bool) -> None:
    """Check a number of cases against the owner's.

    Raises:
        InputError: another number and ``partial`` is not set, or none at all.
    """
    allowed = [wanted] if isinstance(wanted, int) else list(wanted)
    if found in allowed or (partial and found):
        return
    raise InputError(
        f"{folder}: found {found} {what}; wanted {' or '.join(map(str, allowed))}"
        + ("." if partial else " (--partial prepares what is there).")
    )
