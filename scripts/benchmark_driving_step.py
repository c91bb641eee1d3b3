# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and peak memory of a full training step on street scenes, of DA-Cal beside the plain host.

A step is a real one of AdaptationTrainer, as bundles/dacal_gta2cityscapes has it in published.json: MiT-B5 with the
DAFormer head, two crops of 512 x 512, 19 classes; teacher, pseudo-labels, meta-step where due, student step, moving
average. Weights are random and images synthetic and in memory: neither changes the cost. Left out are the feature
distance (one pass of the frozen encoder), colour jitter and blur, the same for every row. "plain host" is DACS with
hard labels and its one mix; "both mixes" adds DA-Cal's complementary mix, without a temperature; the others are DA-Cal
on both mixes with a meta-step in every 4th or in every iteration.

Each row has a process of its own, rows are interleaved over rounds. Time: of a cycle of 4 iterations after 1 to warm
up, divided by 4 and by the batch size; the median over rounds. Beside the wall clock stands the CPU time of all
threads, which other work changes less: the ratio of times is that of CPU times. Memory: the process's peak
resident memory (VmHWM), libraries, student, teacher and optimizer included. Linux only. Ratios are to the plain host.
OMP_NUM_THREADS sets the threads.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ignite.engine import Events

from dacal_med.comparison.facts import describe_machine
from dacal_med.data.paired import PairedDataset, PairedLoader
from dacal_med.engines import (
    AdaptationTrainer,
    make_host,
    make_labeller,
    make_temperature_learner,
    parameter_groups,
)
from dacal_med.io.files import write_json
from dacal_med.networks import segmentation_network

CLASSES = 19
CYCLE = 4
WARM_UP = 1
MEASURED = ("seconds", "cpu_seconds", "peak_mib")
SMALL = {"encoder": "mit_b0", "size": 64}


@dataclass(frozen=True)
class Row:
    """One row: ``every`` 0 learns no temperature."""

    name: str
    every: int
    complement: str


ROWS = (
    Row("plain host", 0, "none"),
    Row("plain host, both mixes", 0, "same"),
    Row("DA-Cal, meta-step every 4th iteration (default)", 4, "same"),
    Row("DA-Cal, meta-step in every iteration", 1, "same"),
)


@dataclass(frozen=True)
class Settings:
    """What one measurement needs to know; travels to its process as JSON."""

    encoder: str
    size: int
    batch_size: int


def items(count: int, size: int) -> list[dict[str, torch.Tensor]]:
    """Noise ``(3, size, size)`` with labels in bands of all classes."""
    bands = (torch.arange(size) * CLASSES // size).to(torch.uint8)
    label = bands.view(1, 1, -1).expand(1, size, size).contiguous()
    return [{"image": torch.rand(3, size, size), "label": label} for _ in range(count)]


def build(row: Row, settings: Settings) -> AdaptationTrainer:
    """Return the trainer of a row."""
    torch.manual_seed(0)
    data = [items(settings.batch_size, settings.size) for _ in range(3)]
    loader = PairedLoader(PairedDataset(*data), settings.batch_size, WARM_UP + CYCLE)
    network = segmentation_network("daformer", settings.encoder, CLASSES)
    optimizer = torch.optim.AdamW(parameter_groups(network, 6e-5), weight_decay=0.01)
    # An untrained teacher is sure of nothing: with a threshold the meta-step would have nothing to do.
    labeller = make_labeller("learned" if row.every else "hard", CLASSES, 3, 2, threshold=0.0)
    # The cycle that is timed holds as many meta-steps as any other.
    meta = make_temperature_learner(labeller, network, optimizer, method="forward", every=row.every, start=WARM_UP)
    host = make_host("dacs", complement=row.complement)
    return AdaptationTrainer("cpu", 1, loader, network, optimizer, CLASSES, host, labeller, meta, teacher_decay=0.999)


def measure(row: Row, settings: Settings) -> dict[str, float]:
    """Return wall and CPU seconds per training image and peak memory in MiB, measured in this process."""
    trainer = build(row, settings)
    marks: list[tuple[float, float]] = []
    norms: list[float] = []

    def note() -> None:
        marks.append((time.perf_counter(), time.process_time()))
        norms.extend(value for key, value in trainer.state.meta.items() if key == "gradient_norm")

    trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
    trainer.run()
    due = 0 if not row.every else CYCLE // row.every
    if len(norms) != due or not all(math.isfinite(norm) and norm > 0.0 for norm in norms):
        raise RuntimeError(f"{row.name}: {due} meta-steps were due, with gradients: their norms are {norms}")
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(float(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2.0**10
    images = CYCLE * settings.batch_size
    seconds, cpu = ((after - before) / images for before, after in zip(marks[WARM_UP - 1], marks[-1], strict=True))
    return {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak}


def measure_in_child(row: Row, settings: Settings) -> dict[str, float]:
    """Measure a row in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps([row.name, asdict(settings)])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{row.name}: measuring ended with status {done.returncode}\n{done.stderr[-1000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def benchmark(settings: Settings, rounds: int) -> list[dict[str, Any]]:
    """Return one record a row, the plain host's first."""
    found: dict[str, list[dict[str, float]]] = {row.name: [] for row in ROWS}
    for turn in range(rounds):
        for row in ROWS:
            result = measure_in_child(row, settings)
            print(f"round {turn + 1} of {rounds}: {row.name}: {json.dumps(result)}", file=sys.stderr, flush=True)
            found[row.name].append(result)
    records: list[dict[str, Any]] = []
    for row in ROWS:
        record: dict[str, Any] = {"name": row.name, "rounds": rounds, **asdict(settings)}
        record |= {key: median(result[key] for result in found[row.name]) for key in MEASURED}
        host = records[0] if records else record
        record |= {"time_ratio": record["cpu_seconds"] / host["cpu_seconds"]}
        record |= {"memory_ratio": record["peak_mib"] / host["peak_mib"]}
        records.append(record)
    return records


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return records as a table in Markdown."""
    lines = ["| step | s per image | CPU s per image | ratio | peak MiB | ratio |", "|---|---|---|---|---|---|"]
    for r in records:
        times = f"{r['seconds']:.2f} | {r['cpu_seconds']:.2f} | {r['time_ratio']:.2f}"
        numbers = f"{times} | {r['peak_mib']:.0f} | {r['memory_ratio']:.2f}"
        lines.append(f"| {r['name']} | {numbers} |")
    return "\n".join(lines)


def positive(text: str) -> int:
    """Parse a number from 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted a whole number from 1")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--encoder", default="mit_b5", help="default: mit_b5")
    add("--size", type=positive, default=512, metavar="N", help="edge of the crops; default: 512")
    add("--batch-size", type=positive, default=2, metavar="N", help="default: 2")
    add("--rounds", type=positive, default=1, metavar="N", help="measurements of each row; default: 1")
    add("--small", action="store_true", help="MiT-B0 on 64 x 64: to try it, not to report")
    add("--json", type=Path, metavar="FILE", help="also write the records to FILE")
    add("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        name, fields = json.loads(options.measure)
        row = next(row for row in ROWS if row.name == name)
        print(json.dumps(measure(row, Settings(**fields))))
        return
    if not Path("/proc/self/status").exists():
        parser.error("memory is read from /proc, which only Linux has")
    chosen = {"encoder": options.encoder, "size": options.size, **(SMALL if options.small else {})}
    settings = Settings(batch_size=options.batch_size, **chosen)
    about = describe_machine()
    print(
        f"{about}\n{settings.encoder}, batch {settings.batch_size} of {settings.size} x {settings.size}\n", flush=True
    )
    records = benchmark(settings, options.rounds)
    print(table(records), flush=True)
    if options.json is not None:
        write_json(options.json, {"machine": about, "rows": records})


if __name__ == "__main__":
    main()
