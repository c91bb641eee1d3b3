# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Every bundle on a small phantom, end to end: train, evaluate, infer, export; and how little they differ."""

from __future__ import annotations

import difflib
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from monai.bundle import ConfigWorkflow, ckpt_export, onnx_export, verify_metadata, verify_net_in_out
from monai.networks.nets import UNet

import dacal_med
from dacal_med.bundle import check_overrides
from dacal_med.data.phantom_kinds import KINDS
from dacal_med.engines import known_regions
from dacal_med.handlers import load_weights
from dacal_med.io.reading import read_header, read_image
from dacal_med.preparation import find_recipe
from dacal_med.preparation.sets import brats, disc_cup
from tests.bundles.builders import (
    BUNDLES,
    EXPORTED,
    FIRST,
    HOST_OVERLAYS,
    PUBLISHED,
    REGIONS,
    SHARED,
    STREETS,
    TINY_MIT,
    check_outputs,
    command,
    configs,
)
from tests.conftest import ROOT
from tests.processes import run_here, without_figures

MAX_CHANGED_LINES = 19
# The driving bundles have another network, which needs more lines and its own rate; every class counts in their loss.
MAX_CHANGED_LINES_STREETS = 22
STREET_KEYS = {"network_def", "learning_rate", "truth_loss_function"}
# SYNTHIA's published means are over some of the classes, on which the evaluator takes them.
SUBSET_KEYS = {"class_subsets", "validate"}
OWN_KEYS = {
    *("bundle_root", "dataset_dir", "spatial_dims", "in_channels", "roi_size", "background", "regions", "batch_size"),
    *("file_patterns", "num_classes", "spacing", "intensity", "output_ext", "confidence_scale"),
}
SUFFIX = {2: "png", 3: "nii.gz"}


def test_every_folder_is_tested():
    assert {path.name for path in (ROOT / "bundles").iterdir() if path.is_dir()} == set(BUNDLES)


def test_differs_from_the_first_in_few_lines(bundle):
    for name in SHARED:
        assert (bundle.configs / name).read_bytes() == (FIRST.configs / name).read_bytes()
    assert (bundle.folder / "LICENSE").read_bytes() == (FIRST.folder / "LICENSE").read_bytes()
    for name in ("train.json", "inference.json"):
        files = [(b.configs / name).read_text().splitlines() for b in (FIRST, bundle)]
        lines = [line for line in difflib.ndiff(*files) if line.startswith("+ ")]
        assert len(lines) <= (MAX_CHANGED_LINES_STREETS if bundle.streets else MAX_CHANGED_LINES), lines
        contents = [b.load(name.removesuffix(".json")) for b in (FIRST, bundle)]
        changed = {key for key in contents[0] | contents[1] if contents[0].get(key) != contents[1].get(key)}
        own = OWN_KEYS | STREET_KEYS if bundle.streets else OWN_KEYS
        if bundle.kind == "synthia2cityscapes":
            own = own | SUBSET_KEYS
        assert changed <= own, f"{name}: a change to one bundle belongs into all: {changed - own}"


def test_has_no_code_of_its_own(bundle):
    """Inference names nothing of this package but what reads and writes images."""
    wanted = {"configs", "docs", "LICENSE"}
    assert wanted <= {path.name for path in bundle.folder.iterdir()} <= wanted | {"data", "eval", "models"}
    assert not list(bundle.configs.rglob("*.py"))
    for path in bundle.configs.glob("*.json"):
        for target in re.findall(r'"_target_": "([^"]+)"', path.read_text()):
            assert target.startswith(("dacal_med.", "monai.", "torch.optim.")) or "." not in target, (path.name, target)
    inference = bundle.load("inference")
    if bundle.streets:  # MONAI has no such network; the exported one needs neither MONAI nor this package
        assert inference.pop("network_def")["_target_"] == "dacal_med.networks.segmentation_network"
    assert "dacal_med" not in re.sub(rf"'{bundle.name}'|dacal_med\.io\.(Reader|Writer)\b", "", json.dumps(inference))


@pytest.mark.parametrize(("names", "kind"), [(("train",), "train"), (("inference",), "infer")])
def test_has_every_property_that_monai_wants(bundle, names, kind, phantom_of, tmp_path):
    workflow = ConfigWorkflow(
        config_file=configs(*names, bundle=bundle),
        meta_file=str(bundle.configs / "metadata.json"),
        logging_file=str(bundle.configs / "logging.conf"),
        workflow_type=kind,
        bundle_root=str(bundle.folder),
        dataset_dir=phantom_of(bundle),
        output_dir=str(tmp_path),
        **bundle.tiny,
    )
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_follows_the_specification(bundle):
    schema = ROOT / "tests" / "bundles" / "metadata_schema.json"
    verify_metadata(meta_file=str(bundle.configs / "metadata.json"), filepath=str(schema))
    content = bundle.load("metadata")
    assert content["version"] in content["changelog"]
    assert content["version"] == dacal_med.__version__
    constraints = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert content["pytorch_version"] == constraints["torch"]
    assert content["monai_version"] == constraints["monai"]
    assert content["numpy_version"] == constraints["numpy"]
    for package, version in content["required_packages_version"].items():
        assert constraints[package] == version


def test_network_takes_and_gives_what_the_metadata_says(bundle):
    verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle.configs / "metadata.json"),
        config_file=configs("inference", bundle=bundle),
        device="cpu",
        bundle_root=str(bundle.folder),
    )


def test_training_inference_and_metadata_describe_one_network(bundle):
    train, inference = bundle.load("train"), bundle.load("inference")
    for key in ("network_def", "spatial_dims", "in_channels"):
        assert train[key] == inference[key]
    assert (train["spatial_dims"], train["in_channels"]) == (bundle.spatial_dims, bundle.in_channels)
    assert str(train["roi_size"]) in inference["roi_size"]
    form = bundle.load("metadata")["network_data_format"]
    classes = bundle.classes
    assert form["outputs"]["pred"]["channel_def"] == {str(index): name for index, name in enumerate(classes)}
    assert form["inputs"]["image"]["spatial_shape"] == train["roi_size"]
    assert f"'num_classes', {len(classes)})" in inference["num_classes"]
    assert f"='{bundle.kind}'" in train["dataset_dir"] or bundle is FIRST
    assert f"'{bundle.target}'" in inference["dataset_dir"]


def test_training_writes_all_that_it_promises(bundle, trained_of):
    trained = trained_of(bundle)
    check_outputs(bundle, trained, *((trained / f"{name}.txt").read_text() for name in ("stdout", "stderr")))


@pytest.fixture
def run_bundle(bundle):
    """Run a bundle in this process, as from its own folder on a command line."""

    def start(*names, **overrides):
        done = run_here(command(*names, bundle=bundle, relative_to=bundle.folder, **overrides), bundle.folder)
        assert done.returncode == 0, done.stderr[-3000:]

    return start


def test_evaluation_repeats_the_scores_of_training(bundle, trained_of, phantom_of, tmp_path, run_bundle):
    trained = trained_of(bundle)
    options = {**bundle.tiny, "dataset_dir": phantom_of(bundle), "output_dir": tmp_path}
    run_bundle("train", "evaluate", **options, model_file=trained / "model.pt")
    found = json.loads((tmp_path / "evaluation.json").read_text())
    after = json.loads((trained / "metrics.json").read_text())["after"]
    assert found["dice"] == pytest.approx(after["dice"], abs=1e-6)
    assert found["ece"] == pytest.approx(after["ece"], abs=1e-6)


def test_inference_writes_segmentations_on_the_grid_of_the_image(bundle, trained_of, phantom_of, tmp_path, run_bundle):
    folder = Path(phantom_of(bundle)) / bundle.target / "images"
    model = trained_of(bundle) / "model.pt"
    run_bundle("inference", **bundle.network, dataset_dir=folder, output_dir=tmp_path, model_file=model)
    suffix = SUFFIX[bundle.spatial_dims]
    classes = len(bundle.classes)
    images = sorted(folder.iterdir())
    assert len(images) == 5
    for path in images:
        image = read_header(path)
        name = path.name.removesuffix(f".{suffix}")
        segmentation, confidence = (tmp_path / f"{name}_{part}.{suffix}" for part in ("seg", "confidence"))
        for result in (segmentation, confidence):
            header = read_header(result)
            assert (header.shape, header.channels) == (image.shape, 1)
            if image.affine is not None:
                np.testing.assert_allclose(header.affine, image.affine, atol=1e-3)
        values = read_image(segmentation).array
        assert values.dtype == np.uint8
        assert set(np.unique(values)) <= set(range(classes))
        shares = read_image(confidence).array / (255 if suffix == "png" else 1)
        assert 1 / classes - 5e-3 <= shares.min() <= shares.max() <= 1 + 1e-3


def tiny_inference_config(bundle, folder):
    """The inference configuration with the tiny network, as ``ckpt_export`` reads files alone."""
    content = bundle.load("inference")
    content["network_def"].update({key.removeprefix("network_def#"): value for key, value in bundle.network.items()})
    content["bundle_root"] = str(bundle.folder)
    path = folder / "inference.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("bundle", EXPORTED.values(), ids=EXPORTED)
def test_exports_give_the_same_logits(bundle, trained_of, tmp_path):
    trained = trained_of(bundle)
    config = str(tiny_inference_config(bundle, tmp_path))
    common = {
        "net_id": "network_def",
        "meta_file": str(bundle.configs / "metadata.json"),
        "config_file": config,
        "ckpt_file": str(trained / "model.pt"),
    }
    shape = [1, bundle.in_channels, *[bundle.roi] * bundle.spatial_dims]
    # TorchScript's compiler does not understand the encoders of transformers; a trace serves any image size.
    tracing = {"use_trace": True, "input_shape": shape} if bundle.streets else {}
    ckpt_export(filepath=str(tmp_path / "model.ts"), **common, **tracing)
    onnx_export(filepath=str(tmp_path / "model.onnx"), input_shape=shape, use_trace=True, **common)
    workflow = ConfigWorkflow(config_file=config, workflow_type="infer")
    workflow.initialize()
    network = workflow.parser.get_parsed_content("network")
    load_weights(network, trained / "model.pt")
    network.eval()
    image = torch.rand(*shape)
    with torch.no_grad():
        expected = network(image)
        script = torch.jit.load(str(tmp_path / "model.ts"))(image)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    (onnx,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    torch.testing.assert_close(script, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(onnx), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "class_names", "expected"),
    [
        ("dacal_brats", list(brats.REGIONS.names.values()), REGIONS["dacal_brats"]),
        ("dacal_brats", list(brats.WHOLE.names.values()), []),
        ("dacal_fundus", list(disc_cup.GREY.names.values()), REGIONS["dacal_fundus"]),
        ("dacal_fundus", list(KINDS["vessels"].labels.values()), []),
    ],
)
def test_regions_are_those_of_the_recipe_or_none(name, class_names, expected):
    entry = BUNDLES[name].load("train")["regions"]
    assert entry["_target_"] == "dacal_med.engines.known_regions"
    assert list(known_regions(class_names, entry["regions"])) == expected


@pytest.mark.parametrize("name", list(BUNDLES))
def test_readme_says_what_the_bundle_owes(name):
    """Terms, splits, published results and how to compare; and the recipes it names exist."""
    text = (ROOT / "bundles" / name / "docs" / "README.md").read_text()
    assert ("Research only" if BUNDLES[name].streets else "Not a medical device") in text
    assert f"bundles/{name}/configs" in text
    assert all(word in text for word in ("Licence", "Split", "Published", "dacal_med compare", "dacal_med prepare"))
    for recipe in re.findall(r"dacal_med prepare (\w+)", text):
        assert BUNDLES[name].streets or (ROOT / "scripts" / f"prepare_{recipe}.py").is_file(), recipe
        assert find_recipe(recipe).name == recipe


# Sizes of images; MIC hides other images where the target has no artefacts at its edges.
OWN_PUBLISHED = {
    "published.json": {'"source_long_edge":', '"target_long_edge":'},
    "published_mic.json": {'"host#masked_source":', '"labeller#ignore_top":', '"labeller#ignore_bottom":'},
}
ALL_STREETS = [bundle for bundle in BUNDLES.values() if bundle.streets]


@pytest.mark.parametrize("bundle", ALL_STREETS, ids=lambda bundle: bundle.name)
def test_the_published_protocol_differs_in_the_sizes_of_the_images_alone(bundle):
    for name in ("train", "inference"):
        contents = [b.load(name) for b in (STREETS, bundle)]
        assert all(contents[0].get(key) == contents[1].get(key) for key in STREET_KEYS)
    for name in PUBLISHED:
        files = [(b.configs / name).read_text().splitlines() for b in (STREETS, bundle)]
        changed = [line.split()[1] for line in difflib.ndiff(*files) if line.startswith("+ ")]
        assert set(changed) <= OWN_PUBLISHED.get(name, set())


def trained(bundle, folder, *overlays, **options):
    """The trainer after a training in this process, with its results in ``folder``."""
    workflow = ConfigWorkflow(
        config_file=configs("train", *overlays, bundle=bundle),
        meta_file=str(bundle.configs / "metadata.json"),
        workflow_type="train",
        bundle_root=str(bundle.folder),
        output_dir=str(folder),
        model_file=str(folder / "model.pt"),
        **options,
    )
    workflow.initialize()
    workflow.run()
    return workflow.parser.get_parsed_content("train#trainer")


MEDICAL = [bundle for bundle in BUNDLES.values() if not bundle.streets]


@pytest.mark.parametrize("bundle", MEDICAL, ids=lambda bundle: bundle.name)
def test_the_hosts_overlays_are_the_same_but_for_the_crop(bundle):
    for name in HOST_OVERLAYS:
        files = [(b.configs / name).read_text().splitlines() for b in (FIRST, bundle)]
        changed = {line.split()[1] for line in difflib.ndiff(*files) if line.startswith("+ ")}
        assert changed <= ({'"roi_size":'} if name == "hrda.json" else set())
    network = bundle.load("hrda")["network_def"]["network"]
    assert network == bundle.load("train")["network_def"] == bundle.load("daformer")["host#frozen"]
    roi = bundle.load("hrda")["roi_size"]
    assert len(roi) == bundle.spatial_dims and all(edge % 16 == 0 for edge in roi)


@pytest.mark.parametrize("name", ["dacal_ct2mr", "dacal_fundus"])
def test_mic_on_hrda_on_daformer_trains_in_volumes_and_pictures(name, phantom_of, tmp_path, monkeypatch):
    """The last command of docs/hosts.md, but for sizes: every part takes part in the loss."""
    bundle = BUNDLES[name]
    own = {"channels": [4, 8], "strides": [2], "num_res_units": 1}
    frozen = UNet(bundle.spatial_dims, bundle.in_channels, len(bundle.classes), **own)
    torch.save(frozen.state_dict(), tmp_path / "pretrained.pt")
    options = {
        **{f"network_def#network#{key}": value for key, value in own.items()},
        **{f"host#frozen#{key}": value for key, value in own.items()},
        **{"host#base": "daformer", "host#layer": "model.0", "host#frozen_layer": "model.0"},
        **{"pretrained": str(tmp_path / "pretrained.pt"), "train#dataset#source_sampling#min_voxels": 1},
        **{"roi_size": [16] * bundle.spatial_dims, "labeller#threshold": 0.01, "meta#every": 1, "num_workers": 0},
        **{"epoch_length": 2, "warmup_epochs": 1, "max_epochs": 2, "dataset_dir": phantom_of(bundle)},
    }
    monkeypatch.chdir(ROOT)
    without_figures(monkeypatch)
    trainer = trained(bundle, tmp_path, "hrda", "daformer", "mic", **options)
    assert set(trainer.state.losses) == {"source", "feature_distance", "mix", "complement", "masked"}
    assert trainer.state.meta["gradient_norm"] > 0
    assert trainer.data_loader.dataset.source_sampling.min_crop_voxels == 0.5


def test_the_commands_of_the_hosts_page_name_what_exists(monkeypatch):
    monkeypatch.chdir(ROOT)
    (block,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "hosts.md").read_text(), re.DOTALL)
    commands = [shlex.split(line) for line in block.strip().splitlines()]
    assert len(commands) == 5
    for words in commands:
        check_overrides(words[3:])


# What makes the published protocol small: three iterations on crops of the generated streets.
SMALL = {
    "encoder": "mit_b0",
    "encoder_weights": None,
    "host#frozen#options": TINY_MIT,
    "source_long_edge": 72,
    "target_long_edge": 64,
    "epoch_length": 1,
    "max_epochs": 3,
    "held_out_share": 0.3,
    "num_workers": 0,
    "lr_scheduler#warmup_iters": 1,
    "labeller#ignore_top": 2,
    "labeller#ignore_bottom": 4,
    "labeller#threshold": 0.01,
    "train#dataset#source_sampling#min_voxels": 0,
    "meta#every": 1,
}
TINY_HEAD = {"channels": 8}


@pytest.mark.parametrize("overlays", [(), ("published_hrda",), ("published_mic",), ("published_hrda", "published_mic")])
def test_the_published_protocol_trains(overlays, phantom_of, tmp_path, monkeypatch):
    """DAFormer, HRDA, MIC and MIC on HRDA, as configured but for sizes: every part takes part in the loss."""
    bundle = STREETS
    hrda = "published_hrda" in overlays
    edge = 64 if hrda else 32
    network = "network_def#network#" if hrda else "network_def#"
    options = {
        **SMALL,
        f"{network}encoder_options": TINY_MIT,
        f"{network}head_options": TINY_HEAD,
        "roi_size": [edge, edge],
        "dataset_dir": phantom_of(bundle),
    }
    if hrda:
        options["source_long_edge"] = options["target_long_edge"] = 96
    else:
        assert bundle.load("published")["validate#inferer"]["scale"] == 0.5
        options["validate#inferer#scale"] = 1.0  # half of the generated streets is too small for the encoder
    monkeypatch.chdir(ROOT)
    without_figures(monkeypatch)
    trainer = trained(bundle, tmp_path, "published", *overlays, **options)
    assert {"source", "feature_distance", "mix", "complement"} <= set(trainer.state.losses)
    assert ("masked" in trainer.state.losses) == ("published_mic" in overlays)
    assert trainer.state.meta["gradient_norm"] > 0
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates["head"] == pytest.approx(10 * rates["encoder"])
    assert (trainer.labeller.ignore_top, trainer.hard_labeller.ignore_bottom) == (2, 4)
    assert trainer.teacher.decay == 0.999 and trainer.student.max_gradient_norm is None
    sampling = trainer.data_loader.dataset.source_sampling
    assert sampling.size == 3 and sampling.min_crop_voxels == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["after"]["voxels"] <= 2 * 72 * 96
    if not overlays:
        _published_inference_runs(bundle, options["dataset_dir"], tmp_path)


def _published_inference_runs(bundle, dataset_dir, folder):
    """``published_inference.json`` loads what the published protocol trained and keeps each image's size."""
    assert bundle.load("published_inference")["inferer"]["scale"] == 0.5
    images = sorted((Path(dataset_dir) / bundle.target / "images").iterdir())[:1]
    workflow = ConfigWorkflow(
        config_file=configs("inference", "published_inference", bundle=bundle),
        workflow_type="infer",
        bundle_root=str(bundle.folder),
        datalist=[str(path) for path in images],
        output_dir=str(folder / "predictions"),
        model_file=str(folder / "model.pt"),
        **{
            "network_def#encoder": "mit_b0",
            "network_def#encoder_options": TINY_MIT,
            "network_def#head_options": TINY_HEAD,
            "inferer#scale": 1.5,
        },
    )
    workflow.initialize()
    workflow.run()
    (segmentation,) = (folder / "predictions").glob("*_seg.png")
    assert read_header(segmentation).shape == read_header(images[0]).shape
