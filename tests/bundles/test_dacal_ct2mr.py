# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The CT to MR bundle end to end: train, evaluate, infer, export, from the repository and from its own folder."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time

import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export, verify_metadata, verify_net_in_out

import dacal_med
from dacal_med.handlers import load_weights
from tests.bundles.builders import BUNDLE, CONFIGS, QUICK, TINY, command, configs, run
from tests.conftest import ROOT

CLASSES = ["background", "liver", "spleen", "left kidney", "right kidney"]


def metadata():
    return json.loads((CONFIGS / "metadata.json").read_text())


@pytest.mark.parametrize(("names", "kind"), [(("train",), "train"), (("inference",), "infer")])
def test_has_every_property_that_monai_wants(names, kind, phantom, tmp_path):
    workflow = ConfigWorkflow(
        config_file=configs(*names),
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=str(CONFIGS / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(BUNDLE),
        dataset_dir=phantom,
        output_dir=str(tmp_path),
        **TINY,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_follows_the_specification():
    schema = ROOT / "tests" / "bundles" / "metadata_schema.json"
    verify_metadata(meta_file=str(CONFIGS / "metadata.json"), filepath=str(schema))
    content = metadata()
    assert content["version"] in content["changelog"]
    assert content["version"] == dacal_med.__version__
    constraints = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert content["pytorch_version"] == constraints["torch"]
    assert content["monai_version"] == constraints["monai"]
    assert content["numpy_version"] == constraints["numpy"]
    for package, version in content["required_packages_version"].items():
        assert constraints[package] == version


def test_network_takes_and_gives_what_the_metadata_says():
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(CONFIGS / "metadata.json"),
        config_file=configs("inference"),
        device="cpu",
        bundle_root=str(BUNDLE),
    )


def test_training_and_inference_describe_one_network():
    train, inference = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    assert train["network_def"] == inference["network_def"]
    defaults = inference["roi_size"]
    assert str(train["roi_size"]) in defaults
    channels = metadata()["network_data_format"]["outputs"]["pred"]["channel_def"]
    assert list(channels.values()) == CLASSES


def test_training_writes_all_that_it_promises(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    assert set(metrics) == {"before", "after", "seconds", "peak_memory_mib"}
    assert list(metrics["after"]["per_class"]) == CLASSES
    assert metrics["before"]["voxels"] == metrics["after"]["voxels"] > 0
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == [
        "checkpoint_iteration=2.pt",
        "checkpoint_iteration=4.pt",
    ]
    assert list(trained.glob("events.out.tfevents.*"))
    assert (trained / "cases.csv").is_file()
    assert (trained / "reliability.png").stat().st_size > 10_000
    task = json.loads((trained / "model.json").read_text())
    assert task["num_classes"] == 5
    assert task["spacing"] == pytest.approx([15.0] * 3, rel=0.1)
    assert "foreground ECE" in (trained / "stdout.txt").read_text()
    assert "4/4" in (trained / "stderr.txt").read_text()
    assert "Traceback" not in (trained / "stderr.txt").read_text()


def test_works_from_the_bundles_own_folder(phantom, tmp_path, subprocess_environment):
    line = command("train", relative_to=BUNDLE, **QUICK, dataset_dir=phantom, output_dir=tmp_path)
    done = run([*line, "--model_file", str(tmp_path / "model.pt")], BUNDLE, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "metrics.json").is_file()


def test_evaluation_repeats_the_scores_of_training(trained, phantom, tmp_path, subprocess_environment):
    line = command(
        "train", "evaluate", **TINY, dataset_dir=phantom, output_dir=tmp_path, model_file=trained / "model.pt"
    )
    done = run(line, BUNDLE, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "evaluation.json").read_text())
    after = json.loads((trained / "metrics.json").read_text())["after"]
    assert found["dice"] == pytest.approx(after["dice"], abs=1e-6)
    assert found["ece"] == pytest.approx(after["ece"], abs=1e-6)


def test_inference_writes_segmentations_on_the_grid_of_the_image(trained, phantom, tmp_path, subprocess_environment):
    line = command(
        "inference",
        **{k: v for k, v in TINY.items() if k != "roi_size"},
        dataset_dir=f"{phantom}/mr/images",
        output_dir=tmp_path,
        model_file=trained / "model.pt",
    )
    done = run(line, ROOT, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    datalist = json.loads((ROOT / phantom / "datalist.json").read_text())
    cases = datalist["target_train"] + datalist["target_val"]
    for case in cases:
        image = nib.load(f"{phantom}/{case['image']}")
        name = case["image"].split("/")[-1].removesuffix(".nii.gz")
        segmentation = nib.load(tmp_path / f"{name}_seg.nii.gz")
        confidence = nib.load(tmp_path / f"{name}_confidence.nii.gz")
        for result in (segmentation, confidence):
            assert result.shape == image.shape
            np.testing.assert_allclose(result.affine, image.affine, atol=1e-3)
        assert segmentation.get_data_dtype() == np.uint8
        assert set(np.unique(segmentation.dataobj)) <= set(range(5))
        values = confidence.get_fdata()
        assert 0.2 - 1e-3 <= values.min() <= values.max() <= 1 + 1e-3


def tiny_inference_config(folder):
    """The inference configuration with the tiny network, as ``ckpt_export`` reads files alone."""
    content = json.loads((CONFIGS / "inference.json").read_text())
    content["network_def"].update(channels=[4, 8], strides=[2], num_res_units=1)
    content["bundle_root"] = str(BUNDLE)
    path = folder / "inference.json"
    path.write_text(json.dumps(content))
    return path


def test_exports_give_the_same_logits(trained, tmp_path):
    config = str(tiny_inference_config(tmp_path))
    common = {
        "net_id": "network_def",
        "meta_file": str(CONFIGS / "metadata.json"),
        "config_file": config,
        "ckpt_file": str(trained / "model.pt"),
    }
    ckpt_export(filepath=str(tmp_path / "model.ts"), **common)
    onnx_export(filepath=str(tmp_path / "model.onnx"), input_shape=[1, 1, 16, 16, 16], use_trace=True, **common)
    workflow = ConfigWorkflow(config_file=config, workflow_type="infer")
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    load_weights(network, trained / "model.pt")
    network.eval()
    image = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        expected = network(image)
        script = torch.jit.load(str(tmp_path / "model.ts"))(image)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (onnx,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(script, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(onnx), expected, rtol=1e-4, atol=1e-4)


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


def test_ctrl_c_leaves_a_checkpoint_that_the_run_continues_from(phantom, tmp_path, subprocess_environment):
    options = {**QUICK, "max_epochs": 20, "dataset_dir": phantom, "output_dir": tmp_path}
    line = command("train", **options, model_file=tmp_path / "model.pt")
    process = subprocess.Popen(
        line, cwd=ROOT, env=subprocess_environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 240
    while not list((tmp_path / "checkpoints").glob("*.pt")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()[-3000:]
    iterations = sorted(int(p.stem.split("=")[1]) for p in (tmp_path / "checkpoints").glob("*.pt"))
    assert 0 < iterations[-1] < 40
    assert not (tmp_path / "metrics.json").exists()
    done = run(command("train", **options, model_file=tmp_path / "model.pt", resume=True), ROOT, subprocess_environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "metrics.json").is_file()


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
