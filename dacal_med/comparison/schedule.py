# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Child processes in order: a few at once, finished ones left alone, failed ones tried again, Ctrl-C passed on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import TextIO

from tqdm import tqdm

from dacal_med.handlers.checkpoint import PATTERN
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json

LOG = "log.txt"
RECORD = "job.json"
GRACE = 60.0
"""Seconds that children have to save their checkpoints after Ctrl-C."""

_POLL = 0.1  # seconds between looks at the children
_TAIL = 1 << 16  # bytes of a log that are searched for an error
_ERROR = re.compile(r"^(\S+: )?([\w.]*(Error|Exception|Interrupt)\b|dacal_med: |(?i:error|fatal)\b)")


@dataclass(frozen=True)
class Job:
    """One child process and the folder of its results.

    Attributes:
        name: shown to the user, e.g. ``"dacal, seed 0"``; unique.
        folder: where its results go; its output is appended to ``log.txt`` there.
        command: program and arguments, run from the caller's working directory.
        resume: arguments appended where ``folder/checkpoints`` holds a checkpoint of an earlier attempt.
        after: names of the jobs that must have succeeded before.
        done: file in ``folder`` whose presence means that the job is finished.
        following: names of the jobs that must have ended before, well or not.
        inputs: files that the command reads; other contents are another job.
    """

    name: str
    folder: Path
    command: tuple[str, ...]
    resume: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    done: str = "metrics.json"
    following: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()

    def fingerprint(self) -> str:
        """Return the SHA-256 of the command and its inputs, by which the results of another job are told apart."""
        digest = hashlib.sha256(json.dumps(self.command).encode())
        for path in self.inputs:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        name: the job's.
        succeeded: whether its results are there.
        skipped: whether they were there before.
        seconds: how long it ran in this call.
        message: why it failed, empty if it succeeded.
    """

    name: str
    succeeded: bool
    skipped: bool = False
    seconds: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class _Child:
    job: Job
    process: subprocess.Popen[bytes]
    started: float
    log_start: int  # where this attempt's output begins in the log


def run_jobs(
    jobs: Sequence[Job], max_parallel: int, environment: Mapping[str, str] | None = None, out: TextIO | None = None
) -> dict[str, Outcome]:
    """Run jobs, at most ``max_parallel`` at once, in the order given wherever ``after`` and ``following`` allow.

    A job whose results are there is skipped; one that failed does not stop the others, only those that need it, and is
    tried again by the next call. On Ctrl-C (or SIGTERM) children get SIGINT and :data:`GRACE` seconds to save their
    checkpoints; a second Ctrl-C ends them at once. With several jobs at once the children share the cores:
    ``OMP_NUM_THREADS`` is set unless the environment sets it.

    Args:
        jobs: what to run; names and folders are unique.
        max_parallel: at least 1.
        environment: of the children, this process's by default.
        out: where progress goes, ``sys.stderr`` by default; need not be a terminal.

    Returns:
        The outcome of each job by name, in the order of ``jobs``.

    Raises:
        InputError: before anything starts, if an argument is wrong or a folder holds results of another command.
        KeyboardInterrupt: after the children have ended.
    """
    _check(jobs, max_parallel)
    outcomes = {job.name: Outcome(job.name, True, skipped=True) for job in jobs if _finished(job)}
    variables = dict(os.environ if environment is None else environment)
    if max_parallel > 1:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // max_parallel)))
    stream = sys.stderr if out is None else out
    bar = tqdm(total=len(jobs), initial=len(outcomes), unit="job", file=stream, dynamic_ncols=True, desc="runs")
    with _termination_as_interrupt(), bar:
        _Runner(jobs, max_parallel, variables, bar).run(outcomes)
    return {job.name: outcomes[job.name] for job in jobs}


class _Runner:
    """Keeps up to ``max_parallel`` children running until every job has an outcome."""

    def __init__(self, jobs: Sequence[Job], max_parallel: int, environment: Mapping[str, str], bar: tqdm[None]) -> None:
        self.jobs = jobs
        self.max_parallel = max_parallel
        self.environment = environment
        self.bar = bar
        self.live = bool(getattr(bar.fp, "isatty", lambda: False)())
        self.running: dict[str, _Child] = {}

    def run(self, outcomes: dict[str, Outcome]) -> None:
        try:
            while len(outcomes) < len(self.jobs):
                changed = self._collect(outcomes) | self._start(outcomes)
                if changed:
                    self.bar.set_postfix_str(", ".join(self.running))
                elif self.live:
                    self.bar.refresh()  # the clock goes on while nothing ends
                if self.running:
                    time.sleep(_POLL)
        except BaseException:
            # Children have sessions of their own: whatever ends this process must end them too.
            self._stop()
            raise

    def _start(self, outcomes: dict[str, Outcome]) -> bool:
        """Start what may start, fail what never can; returns whether anything did."""
        before = len(outcomes), len(self.running)
        for job in self.jobs:
            if job.name in outcomes or job.name in self.running:
                continue
            ended = [outcomes[name] for name in job.after if name in outcomes]
            failed = [outcome.name for outcome in ended if not outcome.succeeded]
            if failed:
                self._end(outcomes, Outcome(job.name, False, message=f"needs {failed[0]}, which failed"))
            elif (
                len(ended) == len(job.after)
                and all(name in outcomes for name in job.following)
                and len(self.running) < self.max_parallel
            ):
                try:
                    self.running[job.name] = _launch(job, self.environment)
                except (OSError, InputError) as error:
                    self._end(outcomes, Outcome(job.name, False, message=f"cannot be started: {error}"))
        return before != (len(outcomes), len(self.running))

    def _collect(self, outcomes: dict[str, Outcome]) -> bool:
        """Take the outcome of children that have ended; returns whether any has."""
        ended = [child for child in self.running.values() if child.process.poll() is not None]
        for child in ended:
            del self.running[child.job.name]
            message = _why_failed(child)
            seconds = time.monotonic() - child.started
            self._end(outcomes, Outcome(child.job.name, not message, seconds=seconds, message=message))
        return bool(ended)

    def _end(self, outcomes: dict[str, Outcome], outcome: Outcome) -> None:
        outcomes[outcome.name] = outcome
        self.bar.update()
        if not outcome.succeeded:
            self.bar.write(f"{outcome.name} failed: {outcome.message}", file=self.bar.fp)

    def _stop(self) -> None:
        """Ask the children to save and stop, then end those that have not, with all they have started."""
        processes = [child.process for child in self.running.values() if child.process.poll() is None]
        if not processes:
            return
        self.bar.write(
            f"stopping {', '.join(self.running)}: up to {GRACE:.0f} s to save; Ctrl-C again ends them at once",
            file=self.bar.fp,
        )
        for process in processes:
            # To the process alone: its data loaders must live until it has saved.
            process.send_signal(signal.SIGINT)
        try:
            _wait(processes, GRACE)
        except KeyboardInterrupt:
            self.bar.write("ending them now", file=self.bar.fp)
        for number, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            for process in processes:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):  # it has ended since
                        os.killpg(process.pid, number)
            _wait(processes, seconds)


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Return when all have ended or the time is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(process.poll() is None for process in processes):
        time.sleep(_POLL)


def _launch(job: Job, environment: Mapping[str, str]) -> _Child:
    """Start a job, or continue it from the checkpoint of an earlier attempt."""
    write_json(job.folder / RECORD, {"fingerprint": job.fingerprint(), "command": list(job.command)})
    command = list(job.command)
    if any((job.folder / "checkpoints").glob(PATTERN)):
        command += job.resume
    with (job.folder / LOG).open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        log_start = log.tell()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches children through this process only
        )
    return _Child(job, process, time.monotonic(), log_start)


def _why_failed(child: _Child) -> str:
    """Return the exit status and the log's last error of a child that has ended; empty if it succeeded."""
    code, job = child.process.returncode, child.job
    if code == 0 and (job.folder / job.done).is_file():
        return ""
    if code == 0:
        status = f"ended without writing {job.done}"
    elif code < 0:
        status = f"ended by signal {-code} ({signal.strsignal(-code)})"
    else:
        status = f"exit status {code}"
    line = _last_error(job.folder / LOG, child.log_start)
    return f"{status}: {line}" if line else f"{status}; nothing in its {LOG}"


def _last_error(log: Path, start: int) -> str:
    """Return the last line from byte ``start`` on that reads like an error, else the last line."""
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(start, end - _TAIL))
        lines = [line.rstrip() for line in file.read().decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if _ERROR.match(line)]
    return (errors or lines or [""])[-1].strip()[:300]


def _check(jobs: Sequence[Job], max_parallel: int) -> None:
    if max_parallel < 1:
        raise InputError(f"jobs at once: found {max_parallel}, wanted at least 1")
    for key, values in (("names", [job.name for job in jobs]), ("folders", [str(job.folder) for job in jobs])):
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise InputError(f"jobs: found {key} more than once, wanted each once: {', '.join(repeated)}")
    names = {job.name for job in jobs}
    for job in jobs:
        unknown = sorted({*job.after, *job.following} - names)
        if unknown:
            raise InputError(f"job {job.name!r}: must run after {unknown[0]!r}, which is none of the jobs")
    try:
        TopologicalSorter({job.name: (*job.after, *job.following) for job in jobs}).prepare()
    except CycleError as error:
        raise InputError(f"jobs wait for each other in a circle: {' -> '.join(error.args[1])}") from error


def _finished(job: Job) -> bool:
    """Return whether the job's results are there.

    Raises:
        InputError: if those there are not, or cannot be known to be, of the job's command.
    """
    record, done = job.folder / RECORD, (job.folder / job.done).is_file()
    advice = "give another --out, or delete that folder"
    if not record.is_file():
        if done:
            raise InputError(f"{job.folder}: found {job.done} without {RECORD}, so of an unknown command; {advice}")
        return False
    try:
        content = json.loads(record.read_bytes())
        fingerprint = content["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{record} is not readable ({error}), so its results are of an unknown command; {advice}"
        ) from (error)
    if fingerprint != job.fingerprint():
        raise InputError(f"{job.folder} belongs to another configuration: {_difference(content, job)}; {advice}")
    return done


def _difference(content: Mapping[str, object], job: Job) -> str:
    """Return the first argument in which a recorded command differs from the job's."""
    recorded = content.get("command")
    earlier = [str(part) for part in recorded] if isinstance(recorded, list) else []
    pairs = zip_longest(earlier, job.command, fillvalue="nothing")
    return next(
        (f"it was made with {a!r} where this run has {b!r}" for a, b in pairs if a != b),
        "its configuration files have changed",
    )


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, as batch systems send it, stop the children like Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; elsewhere the caller owns the signals
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
