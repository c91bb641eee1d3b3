# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/your_own_task.md, on a tiny data set in a copy of the bundles."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.bundles.builders import BUNDLES, NETWORK
from tests.conftest import ROOT
from tests.processes import jobs_here, run_here

SCHEDULE = {"epoch_length": 1, "warmup_epochs": 1, "max_epochs": 2}


def blocks() -> list[str]:
    """The shell commands of the document, in order."""
    return re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "your_own_task.md").read_text(), re.DOTALL)


def shortened(command: str) -> str:
    """The same command with overrides that make it tiny."""
    options = {} if "inference.json" in command else {"roi_size": [16, 16]}
    if "inference.json" not in command and "evaluate.json" not in command:
        options.update(SCHEDULE)
    words = "".join(f" --{key} '{value}'" for key, value in {**NETWORK, **options}.items())
    return command.rstrip() + words


@pytest.fixture
def workplace(phantom_of, tmp_path):
    """A folder with a bundle to copy, and data in ``mine``."""
    bundle = BUNDLES["dacal_em"]
    parts = shutil.ignore_patterns("data", "eval", "models")
    shutil.copytree(bundle.folder, tmp_path / "bundles" / bundle.name, ignore=parts)
    shutil.copytree(phantom_of(bundle), tmp_path / "mine")
    return tmp_path


def test_its_commands_run(workplace, monkeypatch):
    def python(command: str) -> None:
        program, *words = shlex.split(shortened(command).replace("\\\n", " "))
        assert program == "python"
        done = run_here([sys.executable, *words], workplace)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

    jobs_here(monkeypatch)
    copying, running, comparing = blocks()
    line = copying.replace("/data/mine", str(workplace / "mine")).replace("mine/b", "mine/b/images")
    copied = subprocess.run(["bash", "-ec", line], cwd=workplace, capture_output=True, text=True)
    assert copied.returncode == 1, copied.stderr  # `diff` says by 1 that it found differences
    assert len([line for line in copied.stdout.splitlines() if line.startswith("> ")]) == 3
    for command in running.strip().splitlines():
        python(command)
    folder = workplace / "bundles" / "my_task" / "eval"
    assert json.loads((folder / "metrics.json").read_text())["after"]["dice"] >= 0
    assert len(list((folder / "predictions").glob("*_seg.png"))) == 5
    python(comparing)
    assert set(json.loads((folder / "comparison" / "comparison.json").read_text())["methods"]) == {
        "source_only",
        "dacal",
    }


def test_its_datalist_is_one():
    text = (ROOT / "docs" / "your_own_task.md").read_text()
    example = json.loads(re.search(r"\n    (\{.*?\]\})\n", text, re.DOTALL)[1])
    assert set(example) == {"name", "labels", "source", "target_train", "target_val"}
