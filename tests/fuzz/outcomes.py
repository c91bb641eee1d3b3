# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What may come of a malformed input: a correct result or the documented error, in time, nothing half-written."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TypeVar

from dacal_med.io.errors import InputError

Result = TypeVar("Result")
SECONDS = 10
_PATIENCE = 12
FROM_BELOW = r"^(?!InputError)\w+(Error|Exception|Warning)\b"
"""How the site's inference tells what it did not expect: by the type of an exception first."""


class Hangs(BaseException):
    """No ``Exception``: what catches whatever a library raises must not catch this."""


@contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    """Fail where something hangs: after so many seconds of work, or twelve times as many of waiting.

    Counted as processor time, so that other work on the machine does not look like a hang.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs(f"still running after {seconds} s of work or {_PATIENCE * seconds} s of waiting")

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _PATIENCE * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def attempt(call: Callable[[], Result], *named: str) -> Result | None:
    """Return what a call gives, or None if it ends in an ``InputError`` of one line that has one of ``named`` in it."""
    with in_time():
        try:
            return call()
        except InputError as error:
            message = str(error)
            assert not named or any(name in message for name in named), message
            assert "Traceback" not in message
            assert len(message) < 2000
            return None


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with the sum of its content."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
