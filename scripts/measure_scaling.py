# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a training iteration against patch, batch, classes and network; a formula fitted to them.

    python -m scripts.measure_scaling [--out scaling.json]

Each point is an adaptation run with the bundles' defaults (teacher, meta-step every 4th iteration, student on source
and both mixes, moving average) on synthetic images in memory, in a process of its own. Time: mean of a cycle of 4
iterations after one to warm up, the faster of two cycles; processor time of the process, since others may run beside
it. Memory: what making and running a training adds at its peak to what is in use after a run of a tiny one, which
loads what libraries load once (VmHWM, set back before, less VmRSS of /proc, Linux only).

Fitted: with V voxels in the batch, C classes and F activations per voxel (the sum over the network's layers of the
outputs' numbers, counted by hooks), memory = V * (a F + b C) + c P and time = V * (d M + e C) + g, with P parameters
and M multiplications per voxel of the network's convolutions. Non-negative least squares on relative errors; the
error of each point comes from a fit without it.

From the fit, memory of patches for a large GPU. For several nodes no measurement: the time that ranks need for their
averages under a model of the links, see :func:`averaging`.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from scipy.optimize import nnls
from torch import Tensor, nn

from dacal_med.io.files import write_json
from scripts.synthetic import make_trainer, unet

CYCLE = 4


@dataclass(frozen=True)
class Point:
    """One run: size of the patch, images of each domain, classes, and the U-Net's channels."""

    size: Sequence[int]
    batch_size: int
    classes: int
    channels: Sequence[int]


BASE = Point((16, 16, 16), 2, 5, (8, 16, 32))
GRID = (
    BASE,
    Point((24, 24, 24), 2, 5, (8, 16, 32)),
    Point((32, 32, 32), 2, 5, (8, 16, 32)),
    Point((48, 48, 48), 2, 5, (8, 16, 32)),
    Point((64, 64, 64), 2, 5, (8, 16, 32)),
    Point((32, 32, 32), 4, 5, (8, 16, 32)),
    Point((32, 32, 32), 2, 2, (8, 16, 32)),
    Point((32, 32, 32), 2, 14, (8, 16, 32)),
    Point((32, 32, 32), 2, 5, (4, 8, 16)),
    Point((32, 32, 32), 2, 5, (16, 32, 64)),
    Point((32, 32, 32), 2, 5, (32, 64, 128)),
    Point((32, 32, 32), 2, 5, (8, 16, 32, 64)),
    Point((160, 160), 2, 5, (8, 16, 32)),
)
TINY = Point((8, 8, 8), 2, 3, (4, 8))
# Where an 80 GB GPU may be of use; computed from the formula, not measured.
EXTRAPOLATED = (
    Point((96, 96, 96), 2, 14, (32, 64, 128, 256)),
    Point((128, 128, 128), 2, 14, (32, 64, 128, 256)),
    Point((160, 160, 160), 2, 14, (32, 64, 128, 256)),
    Point((128, 128, 128), 8, 14, (32, 64, 128, 256)),
    Point((512, 512), 16, 19, (32, 64, 128, 256, 512)),
)


def counts(network: nn.Module, size: Sequence[int]) -> tuple[float, float]:
    """Return activations and multiplications of convolutions per voxel of one forward pass."""
    activations, products = 0, 0

    def watch(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal activations, products
        activations += output.numel()
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() > 2:
            transposed = isinstance(module, (nn.ConvTranspose2d, nn.ConvTranspose3d))
            # A transposed convolution spreads each input cell, of which there are fewer.
            cells = output[0, 0].numel() / (math.prod(module.stride) if transposed else 1)  # type: ignore[arg-type]
            products += int(weight.numel() * cells)

    leaves = [module for module in network.modules() if not list(module.children())]
    handles = [module.register_forward_hook(watch) for module in leaves]
    with torch.no_grad():
        network(torch.zeros(1, 1, *size))
    for handle in handles:
        handle.remove()
    return activations / math.prod(size), products / math.prod(size)


def status(name: str) -> float:
    """Return a figure of /proc/self/status in MiB."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found.group(1)) / 1024


def measure(point: Point) -> dict[str, float]:
    """Run one point in this process."""
    torch.set_num_threads(1)
    run(TINY)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to VmRSS
    before = status("VmRSS")
    return {**run(point), "mib": status("VmHWM") - before}


def run(point: Point) -> dict[str, float]:
    """Make and run one training; return its time, and what the formulas are of."""
    network = unet(len(point.size), point.classes, point.channels)
    activations, products = counts(network, point.size)
    trainer = make_trainer(
        network, point.size, point.classes, batch_size=point.batch_size, epoch_length=1 + 2 * CYCLE, max_epochs=1
    )
    moments: list[float] = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: moments.append(time.process_time()))
    trainer.run()
    cycles = [(moments[i + CYCLE] - moments[i]) / CYCLE for i in (0, CYCLE)]
    return {
        "seconds": min(cycles),
        "voxels": float(point.batch_size * math.prod(point.size)),
        "activations": activations,
        "products": products,
        "parameters": float(sum(p.numel() for p in network.parameters())),
    }


def columns(points: Sequence[Point], found: Sequence[dict[str, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the terms of the formulas for memory (MiB per unit) and time."""
    memory, seconds = [], []
    for point, value in zip(points, found, strict=True):
        voxels = value["voxels"]
        memory.append([voxels * value["activations"], voxels * point.classes, value["parameters"]])
        seconds.append([voxels * value["products"], voxels * point.classes, 1.0])
    return np.array(memory), np.array(seconds)


def fit(terms: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients, and the relative error of each point when it is left out of the fit."""

    def solve(kept: np.ndarray) -> np.ndarray:
        scaled = terms[kept] / values[kept, None]
        size = np.maximum(scaled.max(axis=0), 1e-300)
        return np.asarray(nnls(scaled / size, np.ones(int(kept.sum())))[0]) / size

    everything = np.ones(len(values), dtype=bool)
    errors = []
    for i in range(len(values)):
        kept = everything.copy()
        kept[i] = False
        errors.append(float(terms[i] @ solve(kept)) / values[i] - 1.0)
    return solve(everything), np.array(errors)


def extrapolate(point: Point, coefficients: np.ndarray) -> tuple[float, float, float]:
    """Return the formula's memory in MiB, 10^12 multiplications of one forward pass, and millions of parameters."""
    network = unet(len(point.size), point.classes, point.channels)
    activations, products = counts(network, [32] * len(point.size))
    voxels = point.batch_size * math.prod(point.size)
    parameters = sum(p.numel() for p in network.parameters())
    memory = float(np.array([voxels * activations, voxels * point.classes, parameters]) @ coefficients)
    return memory, voxels * products / 1e12, parameters / 1e6


def averaging(parameters: float, nodes: int, gigabytes_per_second: float) -> float:
    """Return the seconds that an iteration waits for averages between nodes, under a model.

    The student's gradient is averaged in every iteration, the inner and the outer gradient of the meta-step in every
    ``CYCLE``-th, each of all parameters in float32 (the temperature network's is left out, it is far smaller). A ring
    passes ``2 (n - 1) / n`` times that over each node's link. Nothing is hidden behind computation, links are used to
    their full bandwidth, and their latency is left out.

    Args:
        parameters: of the student.
        nodes: connected by the link; inside a node averages are taken to be free.
        gigabytes_per_second: of each node's link, in each direction.
    """
    volume = 4.0 * parameters * (1 + 2 / CYCLE)
    return 2 * (nodes - 1) / nodes * volume / (gigabytes_per_second * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file with all numbers")
    arguments = parser.parse_args()
    found = []
    # Forked, so that each point has a process of its own and no imports to wait for.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        for point, value in zip(GRID, pool.imap(measure, GRID, chunksize=1), strict=True):
            found.append(value)
            print(point, value, flush=True)
    memory, seconds = columns(GRID, found)
    memory_fit, memory_errors = fit(memory, np.array([value["mib"] for value in found]))
    time_fit, time_errors = fit(seconds, np.array([value["seconds"] for value in found]))
    print("\n| patch | batch | classes | channels | MiB | error | s | error |\n|---|---|---|---|---|---|---|---|")
    for point, value, wrong, late in zip(GRID, found, memory_errors, time_errors, strict=True):
        size, channels = "x".join(map(str, point.size)), ", ".join(map(str, point.channels))
        print(
            f"| {size} | {point.batch_size} | {point.classes} | {channels} | {value['mib']:.0f} | {wrong:+.0%} | "
            f"{value['seconds']:.2f} | {late:+.0%} |"
        )
    print(
        "\n| patch | batch | classes | channels | GiB | 10^12 products | 10^6 weights |\n|---|---|---|---|---|---|---|"
    )
    for point in EXTRAPOLATED:
        mib, products, parameters = extrapolate(point, memory_fit)
        size, channels = "x".join(map(str, point.size)), ", ".join(map(str, point.channels))
        print(
            f"| {size} | {point.batch_size} | {point.classes} | {channels} | {mib / 1024:.1f} | {products:.2f} | "
            f"{parameters:.1f} |"
        )
    print("\n| 10^6 weights | nodes | GB/s | s | an iteration takes at least, for 95 % |\n|---|---|---|---|---|")
    for point in (EXTRAPOLATED[0], EXTRAPOLATED[-1]):
        parameters = extrapolate(point, memory_fit)[2]
        for nodes in (2, 8):
            for bandwidth in (1.25, 12.5, 50.0):
                wait = averaging(parameters * 1e6, nodes, bandwidth)
                print(f"| {parameters:.1f} | {nodes} | {bandwidth} | {wait:.4f} | {19 * wait:.2f} s |")
    print("\nmemory:", memory_fit.tolist(), "time:", time_fit.tolist())
    if arguments.out is not None:
        points = [{**asdict(point), **value} for point, value in zip(GRID, found, strict=True)]
        write_json(
            arguments.out,
            {
                "points": points,
                "memory": {"coefficients": memory_fit.tolist(), "errors": memory_errors.tolist()},
                "time": {"coefficients": time_fit.tolist(), "errors": time_errors.tolist()},
            },
        )


if __name__ == "__main__":
    main()
