# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Every bundle exported: what the folder holds, and whether outside tools accept it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import onnx
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out
from monai.data.torchscript_utils import load_net_with_metadata

from dacal_med.deploy.export.checking import load_format, smallest_image
from dacal_med.deploy.export.layout import FORMATS
from dacal_med.deploy.export.wheel import own_wheel
from dacal_med.deploy.runtime import checksums
from tests.conftest import ROOT


def test_the_folder_holds_what_a_site_needs(bundle, site_of):
    site = site_of(bundle.name)
    assert {path.name for path in site.iterdir()} == {
        *("configs", "wheels", "docs", "models", "LICENSE", "SHA256SUMS", "requirements.txt", "sbom.cdx.json")
    }
    assert {path.name for path in (site / "models").iterdir()} == set(FORMATS)
    assert checksums.verify(site) == len((site / "SHA256SUMS").read_text().splitlines())
    done = subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=site, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    ours = {"dacal_med.networks.segmentation_network"} if bundle.streets else set()
    runs = "dacal_med.deploy.runtime.run.SiteInference"
    for name, targets in (
        ("deploy.json", ours),
        ("inference.json", {*ours, runs, "dacal_med.io.Reader", "dacal_med.io.Writer"}),
    ):
        assert set(re.findall(r"dacal_med[\w.]*", (site / "configs" / name).read_text())) == targets
    assert not any(str(ROOT) in path.read_text() for path in (site / "configs").iterdir())
    (wheel,) = (site / "wheels").iterdir()
    assert (wheel.name, wheel.read_bytes()) == (own_wheel().name, own_wheel().content)
    for path in (site / "models").iterdir():
        # Nothing of the machine that exported it.
        assert str(ROOT).encode() not in path.read_bytes()
        assert os.path.dirname(torch.__file__).encode() not in path.read_bytes()


def test_the_folder_is_a_bundle(bundle, site_of):
    """The steps of the model zoo's verify_bundle, and the property check of a workflow, on the folder."""
    site = site_of(bundle.name)
    schema = str(ROOT / "tests" / "bundles" / "metadata_schema.json")
    verify_metadata(meta_file=str(site / "configs" / "metadata.json"), filepath=schema)
    config = str(site / "configs" / "inference.json")
    files = {"meta_file": str(site / "configs" / "metadata.json"), "config_file": config}
    verify_net_in_out(net_id="network_def", device="cpu", bundle_root=str(site), **files)
    logging_file = str(site / "configs" / "logging.conf")
    workflow = ConfigWorkflow(
        workflow_type="infer", logging_file=logging_file, bundle_root=str(site), dataset_dir=str(site), **files
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_names_the_classes_of_the_network_and_the_version(bundle, site_of):
    metadata = json.loads((site_of(bundle.name) / "configs" / "metadata.json").read_text())
    form = metadata["network_data_format"]
    assert own_wheel().name.split("-")[1] == metadata["dacal_med_version"]
    assert form["outputs"]["pred"]["channel_def"] == {str(k): name for k, name in enumerate(bundle.classes)}
    assert form["inputs"]["image"]["spatial_shape"] == bundle.tiny["roi_size"]


def test_torchscript_carries_metadata_and_a_configuration_of_monai_alone(bundle, site_of):
    site = site_of(bundle.name)
    path = str(site / "models" / "model.ts")
    network, metadata, extra = load_net_with_metadata(path, more_extra_files=["inference.json"])
    assert metadata == json.loads((site / "configs" / "metadata.json").read_text())
    config = json.loads(extra["inference.json"])
    assert config == json.loads((site / "configs" / "deploy.json").read_text())
    assert "dacal" not in json.dumps({key: config[key] for key in ("preprocessing", "postprocessing", "inferer")})
    assert config["roi_size"] == bundle.tiny["roi_size"]
    assert network(torch.zeros(1, bundle.in_channels, *bundle.tiny["roi_size"])).shape[1] == config["num_classes"]


def test_onnx_has_free_batch_and_image_axes(bundle, site_of):
    path = site_of(bundle.name) / "models" / "model.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    assert entry.name == "image" and entry.shape[1] == bundle.in_channels
    assert all(isinstance(entry.shape[k], str) for k in (0, *range(2, 2 + bundle.spatial_dims)))
    size = [n + 8 + 2 * k for k, n in enumerate(bundle.tiny["roi_size"])]
    (result,) = session.run(["pred"], {"image": torch.rand(5, bundle.in_channels, *size).numpy()})
    assert list(result.shape) == [5, len(bundle.classes), *size]


def test_the_card_says_from_which_size_on_the_graph_holds(bundle, site_of):
    site = site_of(bundle.name)
    size = smallest_image(site)
    assert f"images of at least {' x '.join(map(str, size))})" in (site / "docs" / "README.md").read_text()
    program = load_format(site, "model.pt2")
    # Export takes 2 for any size that is not fixed, and leaves it unchecked; what the network asks for is above that.
    axis = size.index(max(size))
    below = list(size)
    below[axis] -= 1
    with pytest.raises(RuntimeError, match=f">= {size[axis]}, but got {below[axis]}"):
        program(torch.zeros(2, bundle.in_channels, *below))


def test_the_card_says_what_was_measured_and_what_was_not(bundle, site_of):
    card = (site_of(bundle.name) / "docs" / "README.md").read_text()
    assert "On 2 labelled target cases" in card
    without = ", background left out" if bundle.classes[0] == "background" else ""
    assert f"| mean Dice{without} | 0.6094 | 0.5938 ± 0.062 (2 cases) |" in card
    assert "| Brier score | not measured | not measured |" in card
    for k, name in enumerate(bundle.classes):
        assert f"| {k} | {name} |" in card
        assert f"| {name} | {0.5 + k / 64:.4g} | 0.6875 | 0.03125 | 0.4375 | 4096 |" in card
    assert "| all of them | 0.7031 | 0.5938 ± 0.062 (2 cases) | 8192 |" in card
    assert ("Research only: not for driving" if bundle.streets else "Not a medical device") in card
    assert "Not measured:" in card


def test_the_checksums_run_without_any_other_package(site, tmp_path):
    shutil.copytree(site, tmp_path / "site")
    line = [sys.executable, "-S", "-m", "dacal_med.deploy.runtime.checksums"]
    own = {"PYTHONPATH": f"wheels/{own_wheel().name}"}

    def check() -> subprocess.CompletedProcess[str]:
        return subprocess.run(line, cwd=tmp_path / "site", capture_output=True, text=True, env=own)

    assert check().returncode == 0
    weights = tmp_path / "site" / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    done = check()
    assert done.returncode == 1
    assert "models/model.pt was changed" in done.stderr
