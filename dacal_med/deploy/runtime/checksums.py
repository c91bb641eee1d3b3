# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``SHA256SUMS`` of an exported folder: is every file the one that was exported?

Needs the standard library alone: ``python -m dacal_med.deploy.runtime.checksums`` in the folder (before anything is
installed, with its wheel as ``PYTHONPATH``), or ``sha256sum -c SHA256SUMS``, which does not see files that were added.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from dacal_med.io.errors import InputError

FILE_NAME = "SHA256SUMS"
CLOSED_FOLDERS = ("configs", "models", "wheels")
"""Folders whose files are run or loaded: nothing may be added to them."""


def write(folder: str | Path) -> None:
    """Write ``SHA256SUMS`` for all files of a folder, in the format of ``sha256sum``, sorted by name.

    Args:
        folder: the exported folder, complete.
    """
    folder = Path(folder)
    names = [name for name in _files(folder) if name != FILE_NAME]
    lines = [f"{digest(folder / name)}  {name}\n" for name in names]
    (folder / FILE_NAME).write_text("".join(lines), encoding="utf-8")


def verify(folder: str | Path) -> int:
    """Check every file of an exported folder.

    Args:
        folder: the exported folder.

    Returns:
        How many files were checked.

    Raises:
        InputError: if ``SHA256SUMS`` is missing or malformed, a file is missing or was changed, or a file was added
            where code, configurations or weights are.
    """
    folder = Path(folder)
    listed = _read(folder)
    wrong = []
    for name, wanted in listed.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif digest(folder / name) != wanted:
            wrong.append(f"{name} was changed")
    added = [name for name in _files(folder) if name not in listed and name.split("/")[0] in CLOSED_FOLDERS]
    wrong += [f"{name} was added" for name in added]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(f"{folder} is not as it was exported: {'; '.join(wrong[:5])}{more}. Get the folder again.")
    return len(listed)


def digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    hashed = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(2**20):
            hashed.update(part)
    return hashed.hexdigest()


def _files(folder: Path) -> list[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def _read(folder: Path) -> dict[str, str]:
    path = folder / FILE_NAME
    if not path.is_file():
        raise InputError(f"{path}: not found; wanted a folder that `python -m dacal_med export` made")
    listed = {}
    # What is no text fails below as a line that is none.
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        value, _, name = line.partition("  ")
        # An absolute name or one with .. would let a file outside the folder stand for one inside.
        if len(value) != 64 or not name or name.startswith("/") or ".." in name.split("/"):
            raise InputError(f"{path}, line {number}: found {line[:100]!r}, wanted a SHA-256 and a name")
        listed[name] = value
    if not listed:
        raise InputError(f"{path}: found no line, wanted one for each file")
    return listed


def main() -> int:
    """Check the folder named on the command line, by default the working directory."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.cwd()
    try:
        print(f"{folder}: {verify(folder)} files are as they were exported")
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
