# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Runs whose loading processes start anew, as by default on macOS and from Python 3.14 on."""

from __future__ import annotations

import json
import subprocess
import time

import pytest

from tests.bundles.builders import BUNDLES, command
from tests.conftest import ROOT
from tests.processes import run

BUNDLE = BUNDLES["dacal_em"]


def scores_in(folder) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: metrics[name] for name in ("before", "after", "skipped")}


@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_run_ends_with_the_same_scores_and_a_terminated_one_goes_on(
    method, phantom_of, trained_of, tmp_path, subprocess_environment
):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(f"import multiprocessing\nmultiprocessing.set_start_method({method!r})\n")
    environment = {**subprocess_environment, "PYTHONPATH": f"{site}:{ROOT}"}
    out = tmp_path / "out"
    options = {**BUNDLE.quick, "dataset_dir": phantom_of(BUNDLE), "output_dir": out, "model_file": out / "model.pt"}
    line = command("train", bundle=BUNDLE, **options, num_workers=2, resume="auto")

    first = subprocess.Popen(line, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoints").is_dir() and first.poll() is None:
        time.sleep(0.05)
    time.sleep(0.2)  # the loading processes are starting
    subprocess.run(["kill", "-TERM", "--", f"-{first.pid}"], check=True)  # to every process of the run
    _, told = first.communicate(timeout=300)
    assert first.returncode == 0, told[-3000:]
    assert [path.name for path in (out / "checkpoints").glob("*.pt")] == ["checkpoint_iteration=1.pt"]
    assert not (out / "metrics.json").exists()

    done = run(line, ROOT, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert scores_in(out) == scores_in(trained_of(BUNDLE))
