# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder: the second would move the checkpoints of the first and write over its results."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from dacal_med.engines.parallel import is_main
from dacal_med.io.errors import InputError
from dacal_med.io.files import check_writable

try:
    import fcntl
except ImportError:  # Windows, where loading processes are never forked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_held: dict[Path, int | FileLock] = {}


def claim(folder: str | Path, key: str = "output_dir") -> Path:
    """Make an output folder, check that it can be written, and hold it until this process ends, however it does.

    Rank 0 holds it for all ranks. A process that was forked from this one does not: where this one is killed the folder
    is free, whoever is left. Claiming it twice in one process changes nothing.

    Args:
        folder: of the results.
        key: the setting that names it, for the message.

    Returns:
        The folder.

    Raises:
        InputError: if it cannot be written, or another process holds it.
    """
    folder = check_writable(folder)
    place = folder.resolve() / LOCK
    if is_main() and place not in _held:
        try:
            _held[place] = FileLock(place, timeout=0) if fcntl is None else _lock(place)
            if isinstance(lock := _held[place], FileLock):
                lock.acquire()
        except (Timeout, BlockingIOError, PermissionError) as error:
            _held.pop(place, None)
            raise InputError(
                f"{key}: another run is writing to {folder}{_holder(place)}; wait for it, or give another folder"
            ) from error
        except OSError as error:
            raise InputError(f"{key}: cannot lock {place}: {error.strerror or error}") from error
    return folder


def release(folder: str | Path) -> None:
    """Let others have a folder before this process ends."""
    held = _held.pop(Path(folder).resolve() / LOCK, None)
    if isinstance(held, FileLock):
        held.release()
    elif held is not None:
        os.close(held)


def _lock(place: Path) -> int:
    """Take the system's lock of a file, which belongs to this process alone and not to those it forks."""
    descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode())
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _holder(place: Path) -> str:
    """Who holds a file, as it says itself."""
    try:
        told = place.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({told[:100]})" if told else ""
