# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluator's one pass over a volume against MONAI's metrics one after the other: time, memory, exactness.

MONAI's are CalibrationErrorMetric, DiceMetric and MeanIoU with the one-hot tensors that they want.
Each variant runs in a process of its own, round by round, after a small volume to warm up (the first use loads compiled
code); a line of JSON for each: median seconds, of the wall and of
the processor (all threads), which other work on the machine disturbs less, and peak memory in MiB beyond the volume.
``--cases`` gives several volumes one after the other to one object. Then how many times faster the one pass is. The
last line counts more than 2^24 voxels.

    OMP_NUM_THREADS=2 python -m scripts.benchmark_metrics --size 512 512 128 --classes 14 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from monai.metrics import CalibrationErrorMetric, DiceMetric, MeanIoU
from monai.metrics.calibration import calibration_binning
from monai.networks.utils import one_hot
from torch import Tensor

from dacal_med.core.scores import ece, mean_dice, mean_iou, summarise
from dacal_med.core.statistics import SegmentationStatistics

PEAK = "VmHWM:"
FLOAT32_COUNTS = 2**24


def make_case(size: Sequence[int], classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return probabilities ``(1, C, *size)`` float32 and labels ``(1, 1, *size)`` uint8: thick layers, mostly right."""
    generator = torch.Generator().manual_seed(seed)
    layers = (torch.arange(size[0]) * classes // size[0]).to(torch.uint8)
    labels = layers.view(1, 1, -1, *[1] * (len(size) - 1)).expand(1, 1, *size).contiguous()
    probabilities = torch.empty(1, classes, *size)
    for row in range(size[0]):  # a plane at a time, so that the volume alone takes memory
        logits = torch.randn(classes, *size[1:], generator=generator)
        logits[int(layers[row])] += 4.0
        probabilities[0, :, row] = logits.softmax(0)
    return probabilities, labels


class Clock:
    """A context that adds the seconds spent in it: ``seconds`` of the wall, ``cpu_seconds`` of the processor."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu_seconds += time.process_time() - self._began[1]


def ours(cases: int, load: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Clock, dict[str, float]]:
    """Time in the statistics of cases, and a few scores."""
    clock, result = Clock(), None
    for case in range(cases):
        probabilities, labels = load(case)
        with clock:
            result = result or SegmentationStatistics(probabilities.shape[1])
            result.update(probabilities, labels)
        del probabilities, labels
    assert result is not None
    with clock:
        summarise(result, [f"class {k}" for k in range(result.num_classes)])
    return clock, {"dice": mean_dice(result), "miou": mean_iou(result), "ece": ece(result)}


def theirs(cases: int, load: Callable[[int], tuple[Tensor, Tensor]]) -> tuple[Clock, dict[str, float]]:
    """The same for MONAI's three metrics."""
    error = CalibrationErrorMetric(num_bins=15)
    dice, iou = DiceMetric(), MeanIoU()
    clock = Clock()
    for case in range(cases):
        probabilities, labels = load(case)
        with clock:
            classes = probabilities.shape[1]
            truth = one_hot(labels, classes)
            error(probabilities, truth)
            prediction = one_hot(probabilities.argmax(dim=1, keepdim=True), classes)
            dice(prediction, truth)
            iou(prediction, truth)
        del probabilities, labels, truth, prediction
    with clock:
        scores = {"dice": dice.aggregate(), "miou": iou.aggregate(), "ece": error.aggregate()}
    return clock, {name: float(torch.as_tensor(value)) for name, value in scores.items()}


VARIANTS = {"one pass": ours, "MONAI": theirs}


def status(field: str) -> float:
    """A field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def child(args: argparse.Namespace) -> None:
    """Measure one variant in this process and print it."""
    VARIANTS[args.variant](1, lambda case: make_case((8, 8, 8), args.classes, case))
    before = status("VmRSS:")
    volume = args.classes * float(torch.tensor(args.size).prod()) * 4 / 2**20

    def load(case: int) -> tuple[Tensor, Tensor]:
        return make_case(args.size, args.classes, case)

    clock, scores = VARIANTS[args.variant](args.cases_now, load)
    times = {"seconds": clock.seconds / args.cases_now, "cpu_seconds": clock.cpu_seconds / args.cases_now}
    print(json.dumps({**times, "mib": status(PEAK) - before - volume, **scores}), flush=True)


def count_many(voxels: int) -> dict[str, int]:
    """Count voxels that all lie in one bin, both ways: ours in several updates of one object, MONAI's at once."""
    part = 1 << 22
    probabilities = torch.tensor([0.02, 0.98]).view(1, 2, 1, 1).expand(1, 2, part // 1024, 1024).contiguous()
    labels = torch.ones(1, 1, part // 1024, 1024, dtype=torch.uint8)
    mine = SegmentationStatistics(2)
    for _ in range(voxels // part):
        mine.update(probabilities, labels)
    whole = torch.full((1, 1, voxels), 0.98)
    counts = calibration_binning(whole, torch.ones_like(whole), num_bins=15)[2]
    return {"voxels": voxels, "one pass": int(mine.confidence_count[0].sum()), "MONAI": int(counts.sum())}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 128])
    parser.add_argument("--classes", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", type=int, nargs="+", default=[1, 4], help="volumes given to one object")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--voxels", type=int, default=FLOAT32_COUNTS + (1 << 22), help="to count in one bin; 0: none")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--cases-now", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        child(args)
        return 0
    size = [str(n) for n in args.size]
    base = [sys.executable, "-m", "scripts.benchmark_metrics", "--size", *size, "--classes", str(args.classes)]
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(args.rounds):
        for cases in args.cases:
            for variant in args.variants:
                line = [*base, "--variant", variant, "--cases-now", str(cases)]
                done = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True)
                found.setdefault((variant, cases), []).append(json.loads(done.stdout.splitlines()[-1]))
    for (variant, cases), rows in found.items():
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        about = {"variant": variant, "cases": cases, "rounds": len(rows)}
        numbers = {f"{key}_per_case": round(middle.pop(key), 3) for key in ("seconds", "cpu_seconds")}
        numbers["peak_mib"] = round(middle.pop("mib"))
        print(json.dumps({**about, **numbers, **{key: round(value, 6) for key, value in middle.items()}}), flush=True)
    for cases in args.cases if set(args.variants) == set(VARIANTS) else ():
        slow, fast = (found[variant, cases] for variant in ("MONAI", "one pass"))
        ratios = {
            key: round(statistics.median(row[key] for row in slow) / statistics.median(row[key] for row in fast), 2)
            for key in ("seconds", "cpu_seconds")
        }
        print(json.dumps({"cases": cases, "MONAI / one pass": ratios}), flush=True)
    if args.voxels:
        print(json.dumps(count_many(args.voxels)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
