# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The site's configuration is the bundle's own, but for where it runs and what runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from dacal_med.deploy.export.site_config import site_inference_config
from dacal_med.io.errors import InputError
from tests.bundles.builders import BUNDLES, EXPORTED
from tests.deploy.runtime.builders import export_folder

CHANGED = {"bundle_root", "output_dir", "dataset_dir", "task", "run"}
ADDED = {"force", "identify", "dicom_seg", "site"}


@pytest.mark.parametrize("name", sorted(EXPORTED))
def test_all_else_is_the_bundles(name: str):
    own = BUNDLES[name].load("inference")
    config = site_inference_config(BUNDLES[name].folder, {"num_classes": 2})
    assert config.keys() == (own.keys() - {"task_file", "check_paths"}) | ADDED
    assert {key for key in own.keys() & config.keys() if own[key] != config[key]} == CHANGED
    assert config["task"] == {"num_classes": 2}


def test_monai_finds_what_it_asks_for(tmp_path: Path):
    folder = export_folder(tmp_path / "site")
    configs = folder / "configs"
    workflow = ConfigWorkflow(
        str(configs / "inference.json"), str(configs / "metadata.json"), logging_file=False, workflow_type="inference"
    )
    workflow.initialize()
    assert not workflow.check_properties()


def test_a_bundle_without_configuration(tmp_path: Path):
    with pytest.raises(InputError, match=r"inference\.json: cannot be read"):
        site_inference_config(tmp_path, {})
