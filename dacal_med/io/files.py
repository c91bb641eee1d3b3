# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there: written to a temporary name and renamed."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

from dacal_med.io.errors import InputError

_SHOWN = 200  # characters of a path in a message
MOST_FILES = 20_000  # of a folder that is one image


def given_path(path: str | Path, key: str = "", *, home: bool = False) -> Path:
    """Return a path that a user gave once it is known that it can be looked for, whether or not something is there.

    Args:
        path: of a file or folder.
        key: the option or setting that it was given for, for the message.
        home: whether ``~`` stands for somebody's home.

    Raises:
        InputError: no file can have that name, nobody has that home, or the folders above may not be entered.
    """
    try:
        place = Path(path).expanduser() if home else Path(path)
        with suppress(FileNotFoundError, NotADirectoryError):
            place.stat()
    except (OSError, RuntimeError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        text = str(path)
        shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
        where = f"{key}: " if key else ""
        raise InputError(f"{where}found the path {shown!r} ({cause}); wanted that of a file or folder") from error
    return place


def walk(root: Path, skip: Path | None = None) -> Iterator[Path]:
    """Yield the regular files below a folder in the order of their names; hidden ones and ``skip`` are left out."""
    for folder, folders, names in os.walk(root):
        kept = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in kept if (Path(folder) / name).resolve() != skip]
        if Path(folder).resolve() == skip:
            continue
        files = (Path(folder) / name for name in sorted(names) if not name.startswith("."))
        yield from (file for file in files if not is_special(file))


def is_special(file: Path) -> bool:
    """Whether reading it could wait for ever: a pipe, socket or device. What cannot be looked at is told as a case."""
    try:
        return not stat.S_ISREG(file.stat().st_mode)
    except OSError:
        return False


def file_state(value: object) -> list[list[int]]:
    """Return size and time in nanoseconds of the files that a path names, if it names any.

    Args:
        value: of a file, of a header with voxels beside it, or of a folder, which stands for all files below it.
    """
    path = Path(value) if isinstance(value, str | Path) else None
    if path is None or not path.exists():
        return []
    files = [path]
    if path.is_dir():
        files = list(islice(walk(path), MOST_FILES))
    elif path.suffix.lower() in (".mhd", ".nhdr"):
        files = sorted(file for file in path.parent.iterdir() if file.name.startswith(f"{path.stem}."))
    states = []
    for file in files:
        with suppress(OSError):  # a link to nowhere
            states.append([file.stat().st_size, file.stat().st_mtime_ns])
    return states


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file, whole or not at all.

    Args:
        path: the file; its folder is made.
        content: what to write.

    Raises:
        InputError: if it cannot be written; an earlier file stays as it was.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Give a temporary name beside ``path``, renamed to it if the block ends well and removed otherwise.

    Args:
        path: the file; its folder is made.
        suffix: of the temporary name, for writers that choose the format by it.

    Raises:
        InputError: if it cannot be written; an earlier file stays as it was.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write ``value`` as JSON, whole or not at all.

    Args:
        path: the file; its folder is made.
        value: JSON-ready; NaN is refused, since JSON has none.

    Raises:
        InputError: if the file cannot be written; an earlier one stays as it was.
    """
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def check_writable(folder: str | Path, needed_mib: float = 64.0) -> Path:
    """Make ``folder`` and check that it can hold results, before hours are spent on producing them.

    Args:
        folder: the output folder.
        needed_mib: free space wanted, in MiB.

    Returns:
        The folder.

    Raises:
        InputError: if it cannot be made or written, or its disk is full.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder) as probe:
            probe.write(b"0" * 4096)
            probe.flush()
        usage = os.statvfs(folder)
    except OSError as error:
        raise InputError(f"output folder {folder} cannot be written: {error.strerror or error}") from error
    free = usage.f_bavail * usage.f_frsize / 2**20
    if free < needed_mib:
        raise InputError(f"output folder {folder}: found {free:.0f} MiB free on its disk, wanted {needed_mib:.0f} MiB")
    return folder
