# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Peak memory of an exported model on a large CT: the whole command that a site runs, DICOM in and DICOM SEG out.

Writes a synthetic series (int16, a bright ellipsoid in noise) and an exported folder with a network of one convolution,
and runs it in a process of its own. Each line is JSON: what was asked for, peak resident memory of the process in MiB,
and seconds. The first is a tiny volume: what the libraries alone take.

    python -m scripts.benchmark_site_memory --work /tmp/benchmark
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from dacal_med import __version__
from dacal_med.deploy.export.site_config import site_inference_config
from dacal_med.deploy.runtime import checksums
from dacal_med.io.files import write_json
from scripts.dicom_series import write_series

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundles" / "dacal_ct2mr"
VOXEL = (0.8, 0.8, 1.0)


def write_ct(folder: Path, size: Sequence[int]) -> None:
    """Write an axial CT series.

    Args:
        folder: where.
        size: columns, rows, slices.
    """
    columns, rows, slices = size
    x, y, z = (np.linspace(-1, 1, n, dtype=np.float32) for n in size)
    disc = (x[None] ** 2 + y[:, None] ** 2) * 4
    noise = np.random.default_rng(0).normal(0, 20, (rows, columns)).astype(np.float32)
    values = (np.where(disc + 4 * z[k] ** 2 < 1, 200, -50) + np.roll(noise, k, 0) for k in range(slices))
    write_series(folder, values, VOXEL, "CT")


def write_export(folder: Path, spacing: Sequence[float], classes: int) -> None:
    """Write an exported folder whose network is one convolution.

    Args:
        folder: where.
        spacing: of the grid that the network works on, in mm.
        classes: number of classes.
    """
    config = site_inference_config(BUNDLE, {"num_classes": classes, "spacing": list(spacing), "roi_size": [96, 96, 96]})
    config["network_def"] = {
        "_target_": "torch.nn.Conv3d",
        "in_channels": "@in_channels",
        "out_channels": "@num_classes",
        "kernel_size": 3,
        "padding": 1,
    }
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))
    metadata["dacal_med_version"] = __version__
    names = ["background", *[f"class {k}" for k in range(1, classes)]]
    metadata["network_data_format"]["outputs"]["pred"]["channel_def"] = {str(k): n for k, n in enumerate(names)}
    metadata["network_data_format"]["inputs"]["image"]["modality"] = "CT"
    write_json(folder / "configs" / "inference.json", config)
    write_json(folder / "configs" / "metadata.json", metadata)
    (folder / "models").mkdir()
    torch.manual_seed(0)
    torch.save(nn.Conv3d(1, classes, 3, padding=1).state_dict(), folder / "models" / "model.pt")
    checksums.write(folder)


def measure(export: Path, images: Path, out: Path) -> dict[str, float]:
    """Run the command of the site and watch its memory.

    Returns:
        Peak resident memory in MiB, the largest temporary folder in MiB, and seconds.

    Raises:
        RuntimeError: it failed.
    """
    config = str(export / "configs" / "inference.json")
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
    line += ["--dataset_dir", str(images), "--output_dir", str(out)]
    out.mkdir(parents=True)
    peak, disk, began = 0, 0, time.monotonic()
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
                scratch = [file.stat().st_size for file in out.glob(".dacal_med_*/*")]
                disk = max(disk, sum(scratch))
            except (psutil.NoSuchProcess, FileNotFoundError):
                continue
            time.sleep(0.05)
    if process.returncode:
        raise RuntimeError((out / "log.txt").read_text(encoding="utf-8")[-2000:])
    return {
        "peak_mib": round(peak / 2**20),
        "disk_mib": round(disk / 2**20),
        "seconds": round(time.monotonic() - began),
    }


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for series and results; 5 GB; left there")
    parser.add_argument("--size", type=int, nargs=3, default=[512, 512, 800], help="columns, rows, slices")
    parser.add_argument("--classes", type=int, nargs="+", default=[5, 15], help="numbers of classes")
    parser.add_argument("--spacing", type=float, nargs="+", default=[1.5], help="working grids, isotropic, mm; 0: own")
    args = parser.parse_args()
    small, large = args.work / "small", args.work / "large"
    for folder, size in ((small, [64, 64, 16]), (large, args.size)):
        if not folder.exists():
            write_ct(folder, size)
    runs = [(small, [64, 64, 16], 1.5, args.classes[0])]
    runs += [(large, args.size, spacing, classes) for spacing in args.spacing for classes in args.classes]
    for number, (images, size, spacing, classes) in enumerate(runs):
        place = args.work / f"run_{number}"
        shutil.rmtree(place, ignore_errors=True)
        write_export(place / "export", [spacing] * 3 if spacing else VOXEL, classes)
        result = measure(place / "export", images, place / "out")
        about = {"size": size, "working_mm": spacing or "own", "classes": classes}
        print(json.dumps({**about, **result}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
