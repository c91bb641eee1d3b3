# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny runs of a bundle: a small phantom, a small network, two iterations an epoch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.conftest import ROOT

BUNDLE = ROOT / "bundles" / "dacal_ct2mr"
CONFIGS = BUNDLE / "configs"
TINY = {
    "network_def#channels": [4, 8],
    "network_def#strides": [2],
    "network_def#num_res_units": 1,
    "roi_size": [16, 16, 16],
}
QUICK = {**TINY, "epoch_length": 2, "warmup_epochs": 1, "max_epochs": 2}


def configs(*names: str) -> str | list[str]:
    """Configuration files by name, as ``monai.bundle run`` takes them."""
    files = [str(CONFIGS / f"{name}.json") for name in names]
    return files[0] if len(files) == 1 else files


def command(*names: str, relative_to: Path | None = None, **overrides: object) -> list[str]:
    """A command line; file names are given relative to a folder where one is named."""
    base = CONFIGS if relative_to is None else CONFIGS.relative_to(relative_to)
    files = [str(base / f"{name}.json") for name in names]
    config = files[0] if len(files) == 1 else str(files)
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
    for key, value in overrides.items():
        line += [f"--{key}", str(value)]
    return line


def run(
    line: list[str], folder: Path, environment: Mapping[str, str], timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command line in a folder."""
    return subprocess.run(line, cwd=folder, env=dict(environment), capture_output=True, text=True, timeout=timeout)
