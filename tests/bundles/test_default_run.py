# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The default run, as a newcomer starts it, learns something real within its budget of time and memory."""

from __future__ import annotations

import json

import pytest

from dacal_med.data import ensure_phantom
from tests.bundles.builders import command
from tests.conftest import ROOT
from tests.processes import run


@pytest.fixture(scope="module")
def full_phantom(tmp_path_factory):
    return ensure_phantom(tmp_path_factory.mktemp("data") / "phantom")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1, 2])
def test_adaptation_gains_ten_points_of_dice_and_calibration(number, full_phantom, tmp_path, subprocess_environment):
    line = command(
        "train", seed=number, dataset_dir=full_phantom, output_dir=tmp_path, model_file=tmp_path / "model.pt"
    )
    done = run(line, ROOT, subprocess_environment, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    before, after = metrics["before"], metrics["after"]
    assert after["dice"] >= before["dice"] + 0.10
    assert after["ece"] < before["ece"]
    assert after["foreground_ece"] < before["foreground_ece"]
    assert after["nll"] < before["nll"]
    assert metrics["peak_memory_mib"] < 4096
