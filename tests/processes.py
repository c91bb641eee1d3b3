# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Command lines, run in a process of their own or, where its start costs more than what is tested, in this one."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import IO

import pytest
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from dacal_med.comparison import schedule
from dacal_med.handlers import cases, tensorboard
from dacal_med.handlers.claim import _held, release
from tests.conftest import ROOT


def run(
    line: Sequence[str], folder: Path, environment: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a folder, in a process of its own."""
    return subprocess.run(line, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=timeout)


def run_here(line: Sequence[str], folder: Path = ROOT, figures: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command line of this Python with ``-m`` or a file as :func:`run` does, but in this process.

    It saves the seconds of a process that imports everything anew and, unless ``figures`` are tested, those of drawing.
    Signals and what a process leaves to the next are no matter for it.
    """
    out, err, root = io.StringIO(), io.StringIO(), logging.getLogger()
    handlers, level, at_sigterm, held = root.handlers[:], root.level, signal.getsignal(signal.SIGTERM), {*_held}
    if line[1] == "-m":
        words, start = list(line[2:]), functools.partial(runpy.run_module, alter_sys=True)
    else:
        words, start = list(line[1:]), runpy.run_path
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", words)
        patch.setattr(sys, "excepthook", sys.__excepthook__)
        if not figures:
            without_figures(patch)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = _status(lambda: start(words[0], run_name="__main__"))
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            signal.signal(signal.SIGTERM, at_sigterm)
            for place in _held.keys() - held:
                release(place.parent)
    return subprocess.CompletedProcess(list(line), status, out.getvalue(), err.getvalue())


def _status(start: Callable[[], object]) -> int:
    """Return the exit status that a process would have, having said what it would."""
    try:
        start()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except Exception:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def without_figures(patch: pytest.MonkeyPatch) -> None:
    """Draw nothing for TensorBoard and leave pictures empty, which is half of the time of a short training."""
    parts = ((tensorboard, "reliability_diagram"), (tensorboard, "reliability_histogram"), (cases, "image_panel"))
    for place, name in (*parts, (SummaryWriter, "add_figure"), (Figure, "savefig")):
        patch.setattr(place, name, lambda *_, **__: None)


def children_here(patch: pytest.MonkeyPatch, script: ModuleType) -> None:
    """Let a script's children, which import everything anew to measure it, run in this process."""
    stand_in = SimpleNamespace(run=lambda line, **_: run_here(line), PIPE=subprocess.PIPE)
    patch.setattr(script, "subprocess", stand_in)


class _Ended:
    """Stands for the process of a job: it has run here and ended by the time that it has been started."""

    def __init__(self, line: Sequence[str], stdout: IO[bytes], **_: object) -> None:
        done = run_here(line, Path.cwd())
        stdout.write((done.stdout + done.stderr).encode())
        self.returncode = done.returncode

    def poll(self) -> int:
        return self.returncode


def jobs_here(patch: pytest.MonkeyPatch) -> None:
    """Run the jobs of a comparison in this process, one after another."""
    stand_in = SimpleNamespace(Popen=_Ended, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
    patch.setattr(schedule, "subprocess", stand_in)
