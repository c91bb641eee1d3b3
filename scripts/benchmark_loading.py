# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""How long training iterations of a bundle wait for data, with and without caching, with and without workers.

    OMP_NUM_THREADS=1 python -m scripts.benchmark_loading [--bundle dacal_ct2mr] [--dataset-dir FOLDER]

Each pair of cache (``none``, ``memory``, ``disk``) and number of loading processes is a run of the bundle's train.json
in a process of its own: its network, batch, augmentation and data, self-training with the look-ahead steps;
no evaluation and no checkpoints. Every image is read once first (``fill_seconds``), as the first pass over the data
would. The time from the end of one iteration to the start of the next, in which Ignite asks the loader for a batch, is
waiting; its share of the whole is what is printed, a line of JSON for each run. The first iterations are left out:
the workers start in them. Without ``--dataset-dir`` the bundle's stand-in is used, generated if it is not there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ignite.engine import Events
from monai.bundle import ConfigParser

CACHES = ("none", "memory", "disk")
WARM_UP = 4
ROOT = Path(__file__).resolve().parents[1]


class Waiting:
    """Seconds of each iteration of an engine: until its batch is there, and after."""

    def __init__(self, engine: Any) -> None:
        self.waits: list[float] = []
        self.steps: list[float] = []
        self._at = time.perf_counter()
        engine.add_event_handler(Events.GET_BATCH_STARTED, self._start)
        engine.add_event_handler(Events.GET_BATCH_COMPLETED, self._lap, self.waits)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._lap, self.steps)

    def _start(self) -> None:
        self._at = time.perf_counter()

    def _lap(self, laps: list[float]) -> None:
        now = time.perf_counter()
        laps.append(now - self._at)
        self._at = now


def measure(
    bundle: Path, dataset_dir: str | None, cache: str, workers: int, overrides: dict[str, Any]
) -> dict[str, Any]:
    """Run a bundle's training and return what its iterations waited.

    Args:
        bundle: its folder.
        dataset_dir: the data; None for the bundle's stand-in.
        cache: as in the bundle's configuration.
        workers: loading processes.
        overrides: of the configuration, by key; ``iterations`` counts those of self-training.
    """
    with tempfile.TemporaryDirectory() as folder:
        config = ConfigParser()
        config.read_config(str(bundle / "configs" / "train.json"))
        iterations = overrides.pop("iterations")
        settings = {
            **{"bundle_root": str(bundle), "output_dir": folder, "cache": cache, "num_workers": workers},
            **{"epoch_length": iterations, "warmup_epochs": 0, "max_epochs": 1, "train#handlers": []},
            **({} if dataset_dir is None else {"dataset_dir": dataset_dir}),
            **overrides,
        }
        for key, value in settings.items():
            config[key] = value
        began = time.perf_counter()
        trainer = config.get_parsed_content("train#trainer")
        for data in trainer.data_loader.dataset.datasets.values():
            for index in range(len(data) if cache != "none" else 0):
                data[index]
        filled = time.perf_counter() - began
        waiting = Waiting(trainer)
        trainer.run()
    waits, steps = (np.asarray(laps[min(WARM_UP, iterations // 2) :]) for laps in (waiting.waits, waiting.steps))
    return {
        **{"bundle": bundle.name, "cache": cache, "workers": workers, "iterations": len(waits)},
        "fill_seconds": round(filled, 2),
        "wait_seconds": round(float(waits.mean()), 4),
        "step_seconds": round(float(steps.mean()), 4),
        "waiting_share": round(float(waits.sum() / (waits.sum() + steps.sum())), 4),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every pair and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", default="dacal_ct2mr", help="name of a folder of bundles/")
    parser.add_argument("--dataset-dir", help="folder of a datalist.json; the bundle's stand-in if not given")
    parser.add_argument("--iterations", type=int, default=24, help="of self-training, a few of them left out")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=list(CACHES))
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--set", default="{}", help="overrides of the configuration, as JSON")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        overrides = {"iterations": args.iterations, **json.loads(args.set)}
        row = measure(ROOT / "bundles" / args.bundle, args.dataset_dir, args.caches[0], args.workers[0], overrides)
        print(json.dumps(row), flush=True)
        return
    base = [sys.executable, "-m", "scripts.benchmark_loading", "--one", "--bundle", args.bundle, "--set", args.set]
    base += ["--iterations", str(args.iterations), *(["--dataset-dir", args.dataset_dir] if args.dataset_dir else [])]
    for cache in args.caches:
        for workers in args.workers:
            line = [*base, "--caches", cache, "--workers", str(workers)]
            done = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True, cwd=ROOT)
            print(done.stdout.splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
