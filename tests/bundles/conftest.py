# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A small phantom and one short training run, shared by the tests of the bundles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dacal_med.data import ensure_phantom
from tests.bundles.builders import QUICK, command, run
from tests.conftest import ROOT


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> str:
    """A phantom of a few small cases."""
    return ensure_phantom(
        tmp_path_factory.mktemp("data") / "phantom",
        num_source=4,
        num_target_train=3,
        num_target_val=2,
        image_size=(24, 20, 16),
        spacing_mm=15.0,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory, phantom) -> Path:
    """The outputs of a short run, started from the repository's root."""
    folder = tmp_path_factory.mktemp("trained")
    line = command(
        "train", relative_to=ROOT, **QUICK, dataset_dir=phantom, output_dir=folder, model_file=folder / "model.pt"
    )
    done = run(line, ROOT, {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")})
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "stdout.txt").write_text(done.stdout)
    (folder / "stderr.txt").write_text(done.stderr)
    return folder
