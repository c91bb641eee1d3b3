# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Kill training runs with SIGKILL at random moments, resume them, and compare the end with an uninterrupted run's.

    python -m scripts.kill_and_resume [--kills 20] [--seed 0] [--out kill_and_resume.md]

The run is a real one with a tiny network: warm-up, settling, self-training, meta-steps, feedback, evaluation before and
after, TensorBoard, checkpoints at every epoch (2 iterations), and a last one. Data are in memory and loaded in the
process itself. Each process is forked from this one, so that a kill can hit all of it but the imports.

First every kill has a run of its own: an iteration is drawn uniformly, and a moment uniformly from the time that one
takes, so that training is hit everywhere, not only the evaluation, which takes longest. Every fourth kill waits instead
until a checkpoint is half written. Then one run is killed as often, each time up to three iterations after the one
before, and resumed, so that it advances from kill to kill.

Compared bit by bit: weights of student, teacher and temperature network with its centre, both optimizers, the
scheduler, the counters, the reliability tables (all in the last checkpoint), the deployed weights, metrics.json (but
for seconds and memory), cases.csv, and the order of the data: a hash of each iteration's batch, which two processes
that do the same iteration must also agree on. Linux or macOS, CPU.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events

from dacal_med.comparison.facts import current_commit, describe_machine
from dacal_med.core.weights import load_safely
from dacal_med.engines import AdaptationTrainer, CalibrationEvaluator
from dacal_med.engines.feedback import TemperatureFeedback
from dacal_med.handlers import AdaptationReport, EvaluationReport, ResumableCheckpoint
from dacal_med.io.files import write_bytes
from scripts.synthetic import boxes, make_trainer, unet

SIZE, CLASSES, EPOCHS, EPOCH_LENGTH = (16, 16), 3, 20, 2
ITERATIONS = EPOCHS * EPOCH_LENGTH
POLL = 0.002  # seconds
DIGEST = 2 * hashlib.sha256().digest_size
VARYING = ("seconds", "peak_memory_mib")


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        after: seconds since the start of the process.
        iterations: that had been begun in the run.
        half_written: temporary files that were found in the checkpoints' folder.
        resumed_from: iteration of the checkpoint that the next process continued from, 0 for none.
        identical: whether the end is the uninterrupted run's; ``None`` where another kill follows.
    """

    after: float
    iterations: int
    half_written: int
    resumed_from: int
    identical: bool | None


def train(folder: Path) -> None:
    """Train in ``folder`` from its newest checkpoint, if it has one, to the end."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    logging.disable(logging.WARNING)
    sys.stdout = (folder / "out.txt").open("a")
    trainer = make_trainer(
        unet(2, CLASSES, (4, 8)),
        SIZE,
        CLASSES,
        max_epochs=EPOCHS,
        warmup_epochs=3,
        epoch_length=EPOCH_LENGTH,
        every=2,
        options={"settle_epochs": 2, "feedback": TemperatureFeedback(boxes(4, SIZE, CLASSES, 1.0, 5))},
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(trainer.optimizer, ITERATIONS, power=0.9)
    trainer.add_event_handler(Events.ITERATION_STARTED, _log_data, (folder / "data.txt").open("a"))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: schedule.step())
    evaluator = CalibrationEvaluator("cpu", boxes(2, SIZE, CLASSES, -1.0, 9), trainer.network, ["none", "one", "two"])
    report = AdaptationReport(EvaluationReport(evaluator, folder, panels=1), folder, folder / "model.pt")
    report.attach(trainer)
    extra = {"lr_scheduler": schedule, "report": report}
    ResumableCheckpoint(folder / "checkpoints", extra=extra, resume="auto").attach(trainer)
    trainer.run()


def _log_data(trainer: AdaptationTrainer, file: Any) -> None:
    batch: Any = trainer.state.batch
    digest = hashlib.sha256()
    for domain in sorted(batch):
        for key in sorted(batch[domain]):
            digest.update(batch[domain][key].numpy().tobytes())
    file.write(f"{trainer.state.iteration} {digest.hexdigest()}\n")
    file.flush()


def start(folder: Path) -> int:
    """Fork a process that trains in ``folder``; return its number."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        train(folder)
        status = 0
    except BaseException as error:
        sys.stderr.write(f"{folder}: {type(error).__name__}: {error}\n")
    finally:
        os._exit(status)


def finish(folder: Path) -> float:
    """Train in ``folder`` to the end; return the seconds it took."""
    begun = time.monotonic()
    _, status = os.waitpid(start(folder), 0)
    if status:
        raise RuntimeError(f"the run in {folder} ended with status {status}")
    return time.monotonic() - begun


def begun(folder: Path) -> int:
    """Return the last iteration that was begun in a run, 0 for none."""
    return max(data_order(folder), default=0)


def half_written(folder: Path) -> int:
    """Return the number of temporary files among a run's checkpoints."""
    return len(list((folder / "checkpoints").glob(".*.tmp")))


def kill(folder: Path, iteration: int, delay: float | None) -> Kill:
    """Train in ``folder``, kill the process, and say what it left.

    Args:
        folder: of the run.
        iteration: that must have been begun in the run.
        delay: seconds from then to the kill; ``None`` waits until a checkpoint is half written.
    """
    left = set((folder / "checkpoints").glob(".*.tmp"))
    started = time.monotonic()
    process = start(folder)

    def wait(until: Callable[[], bool]) -> bool:
        """Return whether the process ended first."""
        while not until():
            if os.waitpid(process, os.WNOHANG)[0]:
                return True
            time.sleep(POLL)
        return False

    ended = wait(lambda: begun(folder) >= iteration)
    if not ended and delay is None:
        ended = wait(lambda: bool(set((folder / "checkpoints").glob(".*.tmp")) - left))
    elif not ended and delay is not None:
        time.sleep(delay)
    after = time.monotonic() - started
    if not ended:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    saved = [int(path.stem.split("=")[1]) for path in (folder / "checkpoints").glob("checkpoint_iteration=*.pt")]
    return Kill(after, begun(folder), half_written(folder), max(saved, default=0), None)


def data_order(folder: Path) -> dict[int, str]:
    """Return the hash of each iteration's batch; raise where two processes did not agree."""
    hashes: dict[int, str] = {}
    path = folder / "data.txt"
    for line in path.read_text().splitlines() if path.is_file() else []:
        number, _, digest = line.partition(" ")
        if len(digest) != DIGEST:
            continue  # a kill, or a look at the file, came while it was written
        if hashes.setdefault(int(number), digest) != digest:
            raise RuntimeError(f"{folder}: iteration {number} saw other data when it was repeated")
    return hashes


def outcome(folder: Path) -> dict[str, Any]:
    """Return everything that must be equal at the end of a run."""
    last = folder / "checkpoints" / f"checkpoint_iteration={ITERATIONS}.pt"
    state = load_safely(last, "checkpoint")
    state["report"].pop("seconds")
    metrics = json.loads((folder / "metrics.json").read_text())
    return {
        "checkpoint": state,
        "model": load_safely(folder / "model.pt", "weights file"),
        "metrics": {name: value for name, value in metrics.items() if name not in VARYING},
        "cases": (folder / "cases.csv").read_text(),
        "data": data_order(folder),
    }


def same(a: Any, b: Any) -> bool:
    """Compare nested values, tensors bit by bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return a.hex() == b.hex()  # NaN too
    return type(a) is type(b) and bool(a == b)


def experiment(folder: Path, kills: int, seed: int) -> tuple[float, list[Kill], list[Kill], bool]:
    """Return the uninterrupted run's seconds, the kills of runs killed once, those of one run, and its verdict."""
    rng = random.Random(seed)
    seconds = finish(folder / "whole")
    expected = outcome(folder / "whole")
    each = seconds / ITERATIONS
    once = []
    for number in range(kills):
        run = folder / f"once_{number}"
        found = kill(run, rng.randint(1, ITERATIONS), None if number % 4 == 3 else rng.uniform(0.0, each))
        finish(run)
        once.append(replace(found, identical=same(outcome(run), expected)))
    chain: list[Kill] = []
    for _ in range(kills):
        last = chain[-1].iterations if chain else 0
        chain.append(kill(folder / "chain", min(last + rng.randint(1, 3), ITERATIONS), rng.uniform(0.0, each)))
    finish(folder / "chain")
    return seconds, once, chain, same(outcome(folder / "chain"), expected)


def report(seconds: float, once: list[Kill], chain: list[Kill], identical: bool) -> str:
    """Return the page."""
    good = sum(bool(entry.identical) for entry in once)
    lines = [
        "# Killed and resumed",
        "",
        f"`python -m scripts.kill_and_resume --kills {len(once)}`; its docstring says what is run and compared. The",
        f"uninterrupted run of {ITERATIONS} iterations takes {seconds:.1f} s.",
        f"{describe_machine('cpu')}; one thread, deterministic algorithms. Commit {current_commit()}.",
        "",
        f"**{good} of {len(once)}** runs that were killed once end bit for bit like the uninterrupted run.",
        f"One run that was killed {len(chain)} times ends {'bit for bit like it' if identical else 'DIFFERENTLY'}.",
        "",
        "| run | killed after (s) | in iteration | half-written files left | resumed from iteration | end identical |",
        "|---|---|---|---|---|---|",
    ]
    for number, entry in enumerate(once, start=1):
        lines.append(
            f"| {number} | {entry.after:.2f} | {entry.iterations} | {entry.half_written} | {entry.resumed_from} | "
            f"{'yes' if entry.identical else 'NO'} |"
        )
    lines += ["", "The run that was killed again and again:", ""]
    lines += [
        "| kill | after (s) | in iteration | half-written files left | resumed from iteration |",
        "|---|---|---|---|---|",
    ]
    for number, entry in enumerate(chain, start=1):
        lines.append(
            f"| {number} | {entry.after:.2f} | {entry.iterations} | {entry.half_written} | {entry.resumed_from} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="page to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = experiment(Path(folder), arguments.kills, arguments.seed)
    page = report(*result)
    print(page)
    if arguments.out is not None:
        write_bytes(arguments.out, page.encode())
    if not (result[3] and all(entry.identical for entry in result[1])):
        sys.exit("a run that was killed and resumed ended differently")


if __name__ == "__main__":
    main()
