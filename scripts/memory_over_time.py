# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Resident memory over the iterations of one training run: does it stay flat?

    python -m scripts.memory_over_time [--iterations 500] [--size 32 32] [--channels 4 8] [--out memory]

A run with the bundles' defaults on synthetic images in memory (loading files is not part of it), a small U-Net.
After each iteration the resident memory (VmRSS of /proc, Linux only) is read. Reported is the slope of a straight
line through the second half, in KiB per iteration, and the difference between the means of the third and the last
quarter. Writes <out>.md and <out>.png.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Events
from matplotlib.figure import Figure

from dacal_med.handlers.evaluation import save_figure
from dacal_med.io.files import write_bytes
from scripts.synthetic import make_trainer, unet

CLASSES = 3


def resident_mib() -> float:
    """Return the resident memory of this process."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure(iterations: int, size: Sequence[int], channels: Sequence[int]) -> list[float]:
    """Return the resident memory in MiB after each iteration of a run; the first fifth is warm-up.

    Args:
        iterations: of the run, in ten epochs.
        size: of the images, which tells the number of axes.
        channels: of the U-Net's levels.
    """
    length = max(1, iterations // 10)
    network = unet(len(size), CLASSES, channels)
    trainer = make_trainer(network, size, CLASSES, max_epochs=10, warmup_epochs=2, epoch_length=length)
    values: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: values.append(resident_mib()))
    trainer.run()
    return values


def growth(values: Sequence[float]) -> tuple[float, float]:
    """Return the slope over the second half (KiB per iteration) and last less third quarter (MiB)."""
    half = np.asarray(values[len(values) // 2 :])
    slope = float(np.polyfit(np.arange(len(half)), half, 1)[0]) * 1024
    return slope, float(half[len(half) // 2 :].mean() - half[: len(half) // 2].mean())


def plot(values: Sequence[float]) -> Figure:
    """Draw memory over iterations, from zero, so that flat looks flat."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, len(values) + 1), values, linewidth=1)
    axes.axvline(len(values) / 5, color="grey", linestyle=":", linewidth=1)
    axes.annotate("self-training begins", (len(values) / 5, 0), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(xlabel="iteration", ylabel="resident memory (MiB)", ylim=(0, 1.15 * max(values)))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--size", type=int, nargs="+", default=[32, 32], help="of the images, two or three axes")
    parser.add_argument("--channels", type=int, nargs="+", default=[4, 8], help="of the U-Net's levels")
    parser.add_argument("--out", type=Path, default=Path("memory"), help="page and plot, without ending")
    arguments = parser.parse_args()
    values = measure(arguments.iterations, arguments.size, arguments.channels)
    # Adding 0 after rounding makes -0 a 0.
    slope, difference = (round(value, 2) + 0.0 for value in growth(values))
    asked = " ".join(
        f"--{name} {' '.join(map(str, numbers))}"
        for name, numbers in (("size", arguments.size), ("channels", arguments.channels))
    )
    picture = arguments.out.with_suffix(".png")
    save_figure(plot(values), picture)
    page = f"""# Memory over {len(values)} iterations

`python -m scripts.memory_over_time --iterations {arguments.iterations} {asked}`; PyTorch {torch.__version__}, CPU.
Resident memory of the whole process, libraries included.

| after iteration 1 | middle | last | highest | slope over the second half | last less third quarter |
|---|---|---|---|---|---|
| {values[0]:.1f} MiB | {values[len(values) // 2]:.1f} MiB | {values[-1]:.1f} MiB | {max(values):.1f} MiB | \
{slope:+.2f} KiB per iteration | {difference:+.2f} MiB |

![Resident memory over iterations]({picture.name})
"""
    write_bytes(arguments.out.with_suffix(".md"), page.encode())
    print(page)


if __name__ == "__main__":
    main()
