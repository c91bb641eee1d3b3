# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What the bundles share, tried on the CT to MR bundle: overlays, ranks, interruptions, real images."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
import torch

from tests.bundles.builders import BUNDLE, QUICK, command, run
from tests.conftest import ROOT


def test_works_from_the_bundles_own_folder(phantom, tmp_path, subprocess_environment):
    line = command("train", relative_to=BUNDLE, **QUICK, dataset_dir=phantom, output_dir=tmp_path)
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], BUNDLE, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize("overlay", ["source_only", "hard_labels"])
def test_overlays_change_one_thing(overlay, phantom, tmp_path, subprocess_environment):
    line = command("train", overlay, **QUICK, dataset_dir=phantom, output_dir=tmp_path)
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], ROOT, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "checkpoints" / "checkpoint_iteration=4.pt", weights_only=True)["description"]
    if overlay == "source_only":
        assert state["host"].startswith("SourceOnly")
    else:
        assert state["labeller"].startswith("HardLabels")
    assert state["meta"] == "none"


def test_two_ranks_over_gloo(phantom, tmp_path, subprocess_environment):
    line = command("train", "multi_gpu_train", **QUICK, dataset_dir=phantom, output_dir=tmp_path)
    line = [line[0], "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *line[1:]]
    environment = {**subprocess_environment, "OMP_NUM_THREADS": "1"}
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], ROOT, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "metrics.json").read_text())["after"] is not None
    assert done.stdout.count("foreground ECE") == 1  # one rank reports
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], ROOT, environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "checkpoints" / "previous").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_well_and_continues_exactly(number, phantom, tmp_path, subprocess_environment):
    """The signal goes to every process, that which loads among them, as terminals and clusters send it."""
    options = {**QUICK, "max_epochs": 20, "dataset_dir": phantom, "output_dir": tmp_path}
    line = command("train", **options, model_file=tmp_path / "model.pt", num_workers=1)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(line, cwd=ROOT, env=subprocess_environment, start_new_session=True, **pipes)
    deadline = time.monotonic() + 240
    while not list((tmp_path / "checkpoints").glob("*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-3000:]
    iterations = sorted(int(p.stem.split("=")[1]) for p in (tmp_path / "checkpoints").glob("*.pt"))
    assert 0 < iterations[-1] < 40
    assert not (tmp_path / "metrics.json").exists()
    done = run(command("train", **options, model_file=tmp_path / "model.pt", resume=True), ROOT, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "metrics.json").is_file()
    if number == signal.SIGTERM:
        options["output_dir"] = tmp_path / "whole"
        done = run(command("train", **options, model_file=tmp_path / "whole.pt"), ROOT, subprocess_environment)
        assert done.returncode == 0, done.stderr[-3000:]
        ours, whole = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "whole.pt"))
        assert all(torch.equal(ours[name], whole[name]) for name in whole)


@pytest.mark.parametrize("name", ["sts_ct2mr", "hippocampus_site2site"])
def test_runs_on_real_images(name, shared_data, tmp_path, subprocess_environment):
    options = {**QUICK, "epoch_length": 1, "roi_size": [24, 24, 16]}
    folder = BUNDLE if name == "sts_ct2mr" else ROOT
    line = command("train", **options, dataset_dir=shared_data / name, output_dir=tmp_path)
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], folder, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert len(metrics["after"]["per_class"]) == 2
    assert metrics["after"]["voxels"] > 100_000
