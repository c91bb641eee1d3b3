# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Latency of an exported network in each format, beside the bare network in PyTorch.

One forward pass of a batch of windows, as the sliding window of inference makes it. All formats take turns in every
round, in an order that is drawn anew, so that whatever else the machine does, and what the one before left in caches,
meets all of them alike; the ratio is taken within rounds.

    python -m dacal_med export --bundle bundles/dacal_ct2mr --out site
    OMP_NUM_THREADS=2 python scripts/benchmark_export.py --site site
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dacal_med.deploy.export.checking import Predictor, load_format, load_network
from dacal_med.deploy.export.deployed import read_json
from dacal_med.deploy.export.layout import CONFIGS, FORMATS, METADATA

BARE = "bare network, PyTorch"


def seconds(predict: Predictor, image: Tensor) -> float:
    """Return the time of one forward pass."""
    start = time.perf_counter()
    predict(image)
    return time.perf_counter() - start


def measure(
    predictors: dict[str, Predictor], image: Tensor, rounds: int, clock: Callable[[Predictor, Tensor], float] = seconds
) -> dict[str, list[float]]:
    """Time every predictor once a round, in random order, after a round that does not count.

    Args:
        predictors: by name.
        image: ``(B, channels, *window)``.
        rounds: that count, at least 1.
        clock: times one pass.

    Returns:
        Seconds by name, one for each round.
    """
    names, order = list(predictors), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    with torch.inference_mode():
        for number in range(-1, rounds):
            for name in order.sample(names, len(names)):
                taken = clock(predictors[name], image)
                if number >= 0:
                    times[name].append(taken)
    return times


def table(times: dict[str, list[float]]) -> str:
    """Return the medians, and the ratios to the bare network within rounds with their quartiles, as Markdown."""
    lines = ["| format | median (ms) | ratio to the bare network | quartiles |", "|---|---:|---:|---:|"]
    for name, values in times.items():
        ratios = [value / bare for value, bare in zip(values, times[BARE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        lines.append(f"| {name} | {1e3 * statistics.median(values):.1f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", type=Path, required=True, help="an exported folder")
    parser.add_argument("--batch", type=int, default=4, help="windows in a batch (default: 4, as in inference)")
    parser.add_argument("--rounds", type=int, default=60, help="default: 60")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    form = read_json(options.site / CONFIGS / METADATA)["network_data_format"]["inputs"]["image"]
    image = torch.rand(options.batch, form["num_channels"], *form["spatial_shape"])
    predictors: dict[str, Predictor] = {BARE: load_network(options.site)}
    predictors.update({name: load_format(options.site, name) for name in FORMATS})
    print(f"windows {tuple(image.shape)}, {options.rounds} rounds, {torch.get_num_threads()} threads")
    print(f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores, no GPU\n")
    print(table(measure(predictors, image, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
