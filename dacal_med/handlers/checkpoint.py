# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that a run continues from exactly: saved by epoch and on Ctrl-C, refused if they are another run's."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

from dacal_med.core.weights import load_safely
from dacal_med.engines.description import describe_parts
from dacal_med.engines.parallel import any_rank, barrier, is_main, world_size
from dacal_med.engines.trainer import NonFiniteLossError
from dacal_med.handlers.claim import claim
from dacal_med.handlers.soundness import check_parts, not_finite
from dacal_med.io.errors import InputError
from dacal_med.io.files import replacing, write_bytes

if TYPE_CHECKING:
    from dacal_med.engines.trainer import AdaptationTrainer

logger = logging.getLogger(__name__)

PATTERN = "checkpoint_iteration=*.pt"
KEPT = "source_end.pt"
_OWN = frozenset({"host", "labeller", "meta", "feedback"})  # what runs that share warm-up and settling may differ in
_TOLD = 4  # differences that a message names
_OWN_PARTS = frozenset({"description", "labeller", "meta_optimizer"})


class _Description:
    """Makes the run's description part of a checkpoint."""

    def __init__(self, description: Mapping[str, str]) -> None:
        self.description = dict(description)

    def state_dict(self) -> dict[str, str]:
        return dict(self.description)

    def load_state_dict(self, state: Mapping[str, str], may_differ: Collection[str] = ()) -> None:
        """Refuse the checkpoint of another configuration."""
        if not isinstance(state, Mapping):
            raise InputError(f"its description is a {type(state).__name__}; wanted names with values")
        places = [
            key
            for key in sorted({*self.description, *map(str, state)}, key=lambda key: (key.count("#"), key))
            if state.get(key) != self.description.get(key) and key.split("#")[0] not in may_differ
        ]
        told = [
            f"{key}: the checkpoint has {str(state.get(key, 'nothing'))[:200]!r}, "
            f"this run has {self.description.get(key, 'nothing')[:200]!r}"
            for key in places[:_TOLD]
        ]
        if told:
            more = f"; and {len(places) - _TOLD} more" if len(places) > _TOLD else ""
            raise InputError(f"the checkpoint belongs to another configuration. {'; '.join(told)}{more}")


class ResumableCheckpoint:
    """Saves everything a run needs to continue, every few epochs and when it is interrupted.

    Files are written to a temporary name, brought to the disk and renamed; older ones go only then, so that the newest
    ``n_saved`` whole ones are there whatever happens. Weights or moments of the optimizer that are not finite are never
    saved. Loading uses ``weights_only=True``, checks the sums of the content, and that it can be what a run saved
    (kinds, shapes, finite numbers). The first Ctrl-C or SIGTERM (a cluster's preemption) lets the running iteration
    finish, saves and ends the run without an error, all ranks after the same iteration; a second Ctrl-C stops at once.

    Args:
        folder: where checkpoints go.
        extra: further objects with ``state_dict``/``load_state_dict``, e.g. a learning-rate scheduler.
        description: further facts (the data) that must be equal for a checkpoint to be continued, beside what the
            trainer and the schedule of the learning rate say of themselves.
        interval: epochs between checkpoints.
        n_saved: how many to keep.
        resume: ``False`` starts anew (checkpoints of an earlier run move to ``<folder>/previous``), ``True`` continues
            from the newest readable checkpoint in ``folder``, ``"auto"`` does so if there is one and starts anew if not
            (a job that a cluster starts again), a path continues from that file.
        keep_source_end: also keep the checkpoint at the end of warm-up and settling, as ``source_end.pt``.
        fork_from: such a file of a run that differs in host, labeller, temperature learner and feedback alone. Up to
            there the two are the same run bit by bit, so this one starts where it ends, or from its own beginning if
            there is no such file. Not used with ``resume``.

    Raises:
        InputError: if ``interval`` or ``n_saved`` is below 1.
    """

    def __init__(
        self,
        folder: str | Path,
        extra: Mapping[str, Any] | None = None,
        description: Mapping[str, str] | None = None,
        interval: int = 1,
        n_saved: int = 2,
        resume: bool | str = False,
        keep_source_end: bool = False,
        fork_from: str = "",
    ) -> None:
        if interval < 1 or n_saved < 1:
            raise InputError(f"checkpoint: found interval={interval}, n_saved={n_saved}, wanted both at least 1")
        self.folder = Path(folder)
        self.extra = dict(extra or {})
        self.description = dict(description or {})
        self.interval = interval
        self.n_saved = n_saved
        self.resume = resume
        self.keep_source_end = keep_source_end
        self.fork_from = fork_from
        self._description = _Description({})
        self.interrupted_by: int | None = None
        self._interrupted_at = 0.0
        self._previous_handlers: dict[int, Any] = {}
        self._not_finite_as_built: frozenset[str] = frozenset()

    def attach(self, trainer: AdaptationTrainer) -> None:
        """Register on ``trainer``: resume at the start, save by epoch and on interruption."""
        self._describe(trainer)
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._stop_if_interrupted)
        trainer.add_event_handler(Events.EPOCH_COMPLETED(every=self.interval), self.save)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, self._stop_after_epoch)
        for event in (Events.COMPLETED, Events.TERMINATE, Events.EXCEPTION_RAISED):
            trainer.add_event_handler(event, self._release_signals)

    def _describe(self, trainer: AdaptationTrainer) -> _Description:
        """Describe the run once, before it changes what it is made of."""
        if not self._description.description:
            schedules = {name: thing for name, thing in self.extra.items() if isinstance(thing, LRScheduler)}
            self._description.description = {**trainer.describe(), **describe_parts(schedules), **self.description}
        return self._description

    def objects(self, trainer: AdaptationTrainer) -> dict[str, Any]:
        """Return what is saved, by name."""
        # The description comes first, so that a foreign checkpoint is refused before anything is overwritten.
        return {"description": self._describe(trainer), **trainer.checkpoint_objects(), **self.extra}

    def _start(self, trainer: AdaptationTrainer) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            claim(self.folder, "ckpt_dir")
            if is_main():
                for leftover in self.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
                    leftover.unlink()
        except OSError as error:
            raise InputError(f"cannot write checkpoints to {self.folder}: {error.strerror or error}") from error
        # Constants of a network may be infinite, such as a mask of attention.
        self._not_finite_as_built = frozenset(not_finite(trainer.checkpoint_objects()))
        resume = bool(self.resume)
        if isinstance(self.resume, str) and self.resume.lower() == "auto":
            resume = bool(_checkpoints(self.folder))
        if resume:
            self._load(trainer)
        elif self.fork_from:
            self._fork(trainer)
        barrier()  # no rank moves a file that another is about to read
        if is_main():
            # What lies ahead belongs to another run, or is damaged; what lies behind is pruned as usual.
            self._keep_source(trainer)
            self._set_aside(after=trainer.state.iteration if resume else -1)
        self._take_signals(trainer)

    def _load(self, trainer: AdaptationTrainer) -> None:
        objects = self.objects(trainer)
        path, state = self._read(trainer, objects)
        try:
            for name, thing in objects.items():
                thing.load_state_dict(state[name])
        except Exception as error:  # each part raises whatever a foreign state leads it to
            raise InputError(f"cannot resume from {path}: {_told(error)}") from error
        trainer.last_checkpoint = path
        logger.info(f"resumed from {path} at iteration {trainer.state.iteration}")

    def _fork(self, trainer: AdaptationTrainer) -> None:
        """Start where warm-up and settling of another run ended."""
        path = Path(self.fork_from)
        if not path.is_file():
            logger.warning(f"fork_from: no checkpoint at {path}; this run does its own warm-up, with the same result")
            return
        state = _load_file(path)
        objects = self.objects(trainer)
        part = state.get("trainer")
        wanted, found = trainer.source_iterations, part.get("iteration") if isinstance(part, Mapping) else None
        if found != wanted:
            raise InputError(f"fork_from: {path} is of iteration {found}, wanted {wanted}, the end of settling")
        try:
            objects["description"].load_state_dict(state["description"], may_differ=_OWN)
            parts = {name: thing for name, thing in objects.items() if name not in _OWN_PARTS}
            check_parts(trainer, parts, state)
            for name, thing in parts.items():
                thing.load_state_dict(state[name])
        except Exception as error:
            raise InputError(f"cannot fork from {path}: {_told(error)}") from error
        logger.info(f"forked from {path} at iteration {trainer.state.iteration}")

    def _read(self, trainer: AdaptationTrainer, objects: Mapping[str, Any]) -> tuple[Path, dict[str, Any]]:
        """Return the newest checkpoint that is whole, or the one asked for; one of another run is refused."""
        if isinstance(self.resume, str) and self.resume.lower() not in ("true", "1", "yes", "auto"):
            path = Path(self.resume)
            if not path.is_file():
                raise InputError(f"resume: no checkpoint at {path}")
            state = _load_file(path)
            _check_run(path, state, objects)
            _check_content(path, state, trainer, objects)
            return path, state
        paths = sorted(_checkpoints(self.folder), key=_iteration, reverse=True)
        if not paths:
            raise InputError(f"resume: found no {PATTERN} in {self.folder}; run without --resume to start anew")
        problems = []
        for path in paths:
            try:
                state = _load_file(path)
            except InputError as error:
                problems.append(str(error))
            else:
                _check_run(path, state, objects)  # outside: the run before a foreign one is as foreign
                try:
                    _check_content(path, state, trainer, objects)
                    return path, state
                except InputError as error:
                    problems.append(str(error))
            logger.warning(f"{problems[-1]}; trying the one before")
        raise InputError(
            f"resume: none of the {len(paths)} checkpoints in {self.folder} can be read; the newest: {problems[0]}"
        )

    def _keep_source(self, trainer: AdaptationTrainer) -> None:
        """Take what the run continues from out of ``previous``, which is emptied when others are set aside."""
        path = trainer.last_checkpoint
        if path is not None and path.resolve().parent == (self.folder / "previous").resolve():
            kept = self.folder / f"checkpoint_iteration={trainer.state.iteration}.pt"
            try:
                trainer.last_checkpoint = path.replace(kept)
            except OSError as error:
                raise InputError(f"resume: cannot move {path} to {kept}: {error.strerror or error}") from error

    def _set_aside(self, after: int) -> None:
        """Move the checkpoints after an iteration to ``previous``, where they stay until the next time."""
        paths = [path for path in _checkpoints(self.folder) if _iteration(path) > after]
        if not paths:
            return
        previous = self.folder / "previous"
        try:
            if previous.is_dir():
                shutil.rmtree(previous, ignore_errors=True)
            previous.mkdir()
            for path in paths:
                path.rename(previous / path.name)
        except OSError as error:
            raise InputError(
                f"cannot move the checkpoints of an earlier run to {previous}: {error.strerror or error}; wanted a "
                f"folder there, or nothing"
            ) from error
        logger.info(f"{len(paths)} checkpoint(s) of an earlier run moved to {previous}")

    def save(self, trainer: AdaptationTrainer) -> None:
        """Write a checkpoint of the current state, then remove those beyond ``n_saved``.

        Raises:
            InputError: if it cannot be written.
            NonFiniteLossError: on all ranks, if weights or the optimizer's state are not finite on any of them; every
                further step would start from there. What was saved before stays.
        """
        bad = [name for name in not_finite(trainer.checkpoint_objects()) if name not in self._not_finite_as_built]
        if any_rank(bool(bad)):
            where = f" ({bad[0]} and {len(bad) - 1} more)" if bad else ", on another rank"
            raise NonFiniteLossError(
                f"iteration {trainer.state.iteration}: weights or the optimizer's state are not finite{where}, and are "
                f"not saved; lower the learning rate or set max_gradient_norm, then {trainer.way_on}"
            )
        path = self.folder / f"checkpoint_iteration={trainer.state.iteration}.pt"
        if is_main():
            self._write(trainer, path)
        trainer.last_checkpoint = path

    def _write(self, trainer: AdaptationTrainer, path: Path) -> None:
        try:
            with replacing(path) as temporary:
                torch.save({name: thing.state_dict() for name, thing in self.objects(trainer).items()}, temporary)
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            if self.keep_source_end and trainer.state.iteration == trainer.source_iterations:
                write_bytes(self.folder / KEPT, path.read_bytes())
        except (OSError, RuntimeError, InputError) as error:
            # A full disk is an OSError to Python, and a RuntimeError of torch's writer.
            cause = error.__cause__ if isinstance(error, InputError) and error.__cause__ is not None else error
            told = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
            free = shutil.disk_usage(self.folder).free / 2**20
            raise InputError(
                f"cannot write a checkpoint to {self.folder} ({free:.0f} MiB free): {told}; earlier checkpoints are "
                f"intact"
            ) from error
        for older in sorted(_checkpoints(self.folder), key=_iteration)[: -self.n_saved]:
            try:
                older.unlink()
            except OSError as error:
                raise InputError(f"cannot remove the old checkpoint {older}: {error.strerror or error}") from error

    def _take_signals(self, trainer: Engine) -> None:
        def request_stop(number: int, frame: FrameType | None) -> None:
            if self.interrupted_by is not None:
                # A launcher passes on what the terminal has already sent to every process; clusters repeat SIGTERM.
                echo = world_size() > 1 and time.monotonic() - self._interrupted_at < 1.0
                if number == signal.SIGTERM or echo:
                    return
                self._release_signals()
                raise KeyboardInterrupt
            self.interrupted_by, self._interrupted_at = number, time.monotonic()
            logger.warning("stopping after this iteration; press Ctrl-C again to stop at once")

        self.interrupted_by = None
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous_handlers[number] = signal.signal(number, request_stop)
            except ValueError:  # only the main thread may set handlers; elsewhere the caller owns the signals
                logger.debug("not in the main thread: signals are left to the caller")
                return

    def _release_signals(self, *_: Any) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def _stop_if_interrupted(self, trainer: AdaptationTrainer) -> None:
        # Signals reach ranks at different moments, but they must stop after the same iteration.
        interrupted = any_rank(self.interrupted_by is not None)
        # At the end of an epoch there is more to do, such as an evaluation.
        if interrupted and trainer.state.iteration % trainer.state.epoch_length:
            self._stop(trainer)

    def _stop_after_epoch(self, trainer: AdaptationTrainer) -> None:
        if any_rank(self.interrupted_by is not None) and trainer.state.epoch < trainer.state.max_epochs:
            self._stop(trainer)

    def _stop(self, trainer: AdaptationTrainer) -> None:
        self.save(trainer)
        logger.warning(f"interrupted at iteration {trainer.state.iteration}: continue with --resume true")
        trainer.terminate()


def _checkpoints(folder: Path) -> list[Path]:
    """The files that runs wrote; one that somebody named ``checkpoint_iteration=best.pt`` is theirs, as is a folder."""
    return [path for path in folder.glob(PATTERN) if path.stem.split("=")[1].isdecimal() and path.is_file()]


def _check_run(path: Path, state: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
    """Refuse the checkpoint of a run with another configuration."""
    missing = sorted(set(objects) - set(state))
    if missing:
        raise InputError(
            f"{path} belongs to another configuration: found parts {sorted(map(str, state))}, "
            f"but this run needs {missing} too"
        )
    try:
        objects["description"].load_state_dict(state["description"])
    except InputError as error:
        raise InputError(f"cannot resume from {path}: {error}") from error


def _check_content(
    path: Path, state: Mapping[str, Any], trainer: AdaptationTrainer, objects: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint with anything in it that a run does not save."""
    try:
        check_parts(trainer, objects, state)
    except InputError as error:
        raise InputError(f"cannot resume from {path}: {error}") from error


def _told(error: Exception) -> str:
    """What a message says of an error: a user's as it is, others with their kind."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {str(error)[:400]}"


def _iteration(path: Path) -> int:
    return int(path.stem.split("=")[1])


def _load_file(path: Path) -> dict[str, Any]:
    state = load_safely(path, "checkpoint")
    if not isinstance(state, dict):
        raise InputError(f"{path} is not a checkpoint of dacal_med: found {type(state).__name__}, wanted a dictionary")
    return state
