# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a reader needs to make a table again: data, seeds, versions, machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import torch

from dacal_med.data import Datalist


def describe_run(datalist: Datalist, seeds: Sequence[int]) -> dict[str, str]:
    """Return facts about a comparison, by title.

    Args:
        datalist: the data.
        seeds: of the runs.
    """
    counts = {"source": datalist.source, "target_train": datalist.target_train, "target_val": datalist.target_val}
    facts = {
        "Data": f"{datalist.name} ({', '.join(f'{len(cases)} {name}' for name, cases in counts.items())})",
        "Seeds": ", ".join(map(str, seeds)),
        "Versions": ", ".join(f"{name} {version(name)}" for name in ("dacal-med", "torch", "monai")),
        "Machine": f"{os.cpu_count()} cores ({platform.machine()})"
        + (f", {torch.cuda.get_device_name(0)}" if torch.cuda.is_available() else ", no GPU"),
        "Date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    commit = current_commit()
    return {**facts, "Commit": commit} if commit else facts


def describe_machine(device: torch.device | str = "cpu") -> str:
    """Return what speed depends on, for benchmarks: processor, threads, version of PyTorch, device, and other work."""
    info = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", info.read_text(encoding="utf-8")) if info.exists() else None
    parts = [model[1] if model else platform.processor() or platform.machine()]
    if torch.device(device).type == "cuda":
        parts.append(torch.cuda.get_device_name(device))
    parts += [f"{os.cpu_count()} cores", f"threads: {torch.get_num_threads()}", f"torch {torch.__version__}"]
    parts.append(f"device: {device}")
    if hasattr(os, "getloadavg"):  # not on Windows
        parts.append(f"load {os.getloadavg()[0]:.1f}")
    return ", ".join(parts)


def current_commit() -> str:
    """Return the commit of the checkout that this package runs from, empty for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        line = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=10"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # git itself may be missing; the table stays true without it
