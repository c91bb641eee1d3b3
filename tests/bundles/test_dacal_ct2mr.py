# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What the bundles share, tried on the CT to MR bundle: overlays, ranks, interruptions, real images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.bundles.builders import BUNDLE, FIRST, QUICK, check_outputs, command
from tests.conftest import ROOT
from tests.processes import run, run_here


def test_works_from_the_bundles_own_folder(phantom, tmp_path, subprocess_environment):
    line = command("train", relative_to=BUNDLE, **QUICK, dataset_dir=phantom, output_dir=tmp_path)
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], BUNDLE, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    check_outputs(FIRST, tmp_path, done.stdout, done.stderr)
    assert (tmp_path / "reliability.png").stat().st_size > 10_000


@pytest.mark.parametrize("overlay", ["source_only", "hard_labels"])
def test_overlays_change_one_thing(overlay, phantom, tmp_path):
    line = command("train", overlay, **QUICK, dataset_dir=phantom, output_dir=tmp_path)
    done = run_here([*line, "--model_file", str(tmp_path / "model.pt")])
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "checkpoints" / "checkpoint_iteration=4.pt", weights_only=True)["description"]
    if overlay == "source_only":
        assert "SourceOnly" in state["host"]
    else:
        assert "HardLabels" in state["labeller"]
    assert state["meta"] == "null"


def test_two_ranks_over_gloo(phantom, tmp_path, subprocess_environment):
    options = {**QUICK, "dataset_dir": phantom, "output_dir": tmp_path, "model_file": tmp_path / "model.pt"}
    done = run_here(command("train", "source_only", **options))  # has left checkpoints where the ranks begin anew
    assert done.returncode == 0, done.stderr[-3000:]
    (tmp_path / "metrics.json").unlink()
    line = command("train", "multi_gpu_train", **options)
    line = [line[0], "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *line[1:]]
    done = run(line, ROOT, {**subprocess_environment, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "metrics.json").read_text())["after"] is not None
    assert done.stdout.count("foreground ECE") == 1  # one rank reports
    assert len(list((tmp_path / "checkpoints" / "previous").iterdir())) == 2


def test_an_interrupted_run_ends_well_and_continues_exactly(phantom, tmp_path, subprocess_environment):
    """The signal goes to every process, that which loads among them, as terminals and clusters send it."""
    options = {**QUICK, "max_epochs": 20, "dataset_dir": phantom, "output_dir": tmp_path}
    line = command("train", **options, model_file=tmp_path / "model.pt", num_workers=1, resume="auto")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    iterations = [0]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(line, cwd=ROOT, env=subprocess_environment, start_new_session=True, **pipes)
        deadline = time.monotonic() + 240
        while _last(tmp_path) == iterations[-1] and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()[-3000:]
        iterations.append(_last(tmp_path))
        assert iterations[-2] < iterations[-1] < 40
        assert not (tmp_path / "metrics.json").exists()
    done = run_here(command("train", **options, model_file=tmp_path / "model.pt", resume=True))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "metrics.json").is_file()
    options["output_dir"] = tmp_path / "whole"
    done = run_here(command("train", **options, model_file=tmp_path / "whole.pt"))
    assert done.returncode == 0, done.stderr[-3000:]
    ours, whole = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "whole.pt"))
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def _last(folder: Path) -> int:
    """The iteration of a run's newest checkpoint, 0 before the first."""
    return max((int(path.stem.split("=")[1]) for path in (folder / "checkpoints").glob("*=*.pt")), default=0)


@pytest.mark.parametrize("name", ["sts_ct2mr", "hippocampus_site2site"])
def test_runs_on_real_images(name, shared_data, tmp_path):
    options = {**QUICK, "epoch_length": 1, "roi_size": [24, 24, 16]}
    folder = BUNDLE if name == "sts_ct2mr" else ROOT
    line = command("train", **options, dataset_dir=shared_data / name, output_dir=tmp_path)
    done = run_here([*line, "--model_file", str(tmp_path / "model.pt")], folder)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["after"]["per_class"]) == 2
    assert metrics["after"]["voxels"] > 100_000
