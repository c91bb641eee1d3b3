# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What makes two runs the same experiment: every setting of theirs, and nothing of where they are."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.networks.nets import UNet
from monai.transforms import Compose, SpatialPadd

from dacal_med.engines.description import describe_parts
from tests.bundles.builders import BUNDLES, configs
from tests.conftest import ROOT

OTHERS = {
    "meta#every": (2, "meta#every"),
    "meta#prior": (0.5, "meta#prior"),
    "meta#balance": ("class", "meta#balance"),
    "meta#start": (1, "meta#start"),
    "meta#prior_temperature": (0.9, "meta#prior_temperature"),
    "meta#learning_rate": (0.1, "meta#optimizer#lr"),
    "meta_objective#target": ("hard", "meta#objective#target"),
    "learning_rate": (0.1, "optimizer#lr"),
    "optimizer#weight_decay": (0.5, "optimizer#weight_decay"),
    "lr_scheduler#power": (0.5, "lr_scheduler#power"),
    "train#trainer#teacher_decay": (0.9, "teacher_decay"),
    "train#trainer#max_gradient_norm": (2.0, "max_gradient_norm"),
    "labeller#threshold": (0.5, "labeller#threshold"),
    "host#mix_weight": (0.5, "host#mix_weight"),
    "host#name": ("mic", "host"),
    "feedback#gain": (1.0, "feedback#gain"),
    "network_def#channels": ([8, 16], "network"),
    "network_def#dropout": (0.5, "network#model#0#conv#unit0#adn#D#p"),
    "validate#inferer#overlap": (0.25, "feedback#inferer#overlap"),
    "pad#0#mode": ("reflect", "dataset#datasets#target#transform#transforms#4#mode"),
    "source_random#2#std": (0.5, "dataset#warmup_transform#transforms#2#rand_gaussian_noise#std"),
    "roi_size": ([32, 32], "feedback#inferer#roi_size"),
    "max_epochs": (3, "max_epochs"),
    "seed": (1, "seed"),
    "amp": (False, "amp"),
    "truth_loss_function": ("$dacal_med.engines.soft_cross_entropy", "truth_loss_function"),
}
BUNDLE = BUNDLES["dacal_em"]


def described(dataset, out, *overlays, **overrides) -> dict[str, str]:
    """What a run of a bundle would write into its checkpoints."""
    workflow = ConfigWorkflow(
        config_file=configs("train", *overlays, bundle=BUNDLE),
        workflow_type="train",
        logging_file=False,
        **{**BUNDLE.quick, "dataset_dir": str(dataset), "output_dir": str(out), "num_workers": 0, **overrides},
    )
    workflow.parser.parse(True)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    checkpoint = workflow.parser.get_parsed_content("train#handlers")[3]
    return checkpoint.objects(trainer)["description"].state_dict()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return BUNDLE.make_data(tmp_path_factory.mktemp("data") / "phantom")


@pytest.fixture(scope="module")
def usual(dataset, tmp_path_factory):
    return described(dataset, tmp_path_factory.mktemp("out"))


def test_where_and_how_a_run_computes_does_not_matter(dataset, usual, tmp_path):
    moved = shutil.copytree(dataset, tmp_path / "elsewhere" / "another name")
    places = {"num_workers": 2, "cache": "disk", "cache_dir": str(tmp_path / "c"), "checked": ""}
    assert described(moved, tmp_path / "out", **places, resume="auto", keep_source_end=True) == usual
    assert described(moved, tmp_path / "out", ckpt_dir=str(tmp_path / "k"), model_file=str(tmp_path / "m.pt")) == usual
    assert not [text for text in usual.values() if str(dataset) in text or "0x" in text]


@pytest.mark.parametrize("key", OTHERS)
def test_every_setting_matters_and_is_named(key, dataset, usual, tmp_path):
    value, place = OTHERS[key]
    other = described(dataset, tmp_path, **{key: value})
    differences = [name for name in {*usual, *other} if usual.get(name) != other.get(name)]
    assert place in differences, sorted(differences)
    # What is named first is what was changed.
    assert place in sorted(differences, key=lambda name: (name.count("#"), name))[:4]


def test_the_data_matter_by_their_files(dataset, usual, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    content = json.loads((other / "datalist.json").read_text())
    content["target_val"].pop()
    (other / "datalist.json").write_text(json.dumps(content))
    found = described(other, tmp_path)
    assert [name for name in usual if usual[name] != found.get(name)] == ["data#target_val"]


def test_the_file_of_a_frozen_encoder_matters_by_its_content(dataset, tmp_path):
    own = {"channels": [4, 8], "strides": [2], "num_res_units": 1}
    options = {f"host#frozen#{key}": value for key, value in own.items()}
    options |= {"host#layer": "model.0", "host#frozen_layer": "model.0", "train#dataset#source_sampling#min_voxels": 1}
    found = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(seed)
        torch.save(UNet(2, 1, 2, **own).state_dict(), tmp_path / "w.pt")
        path = (tmp_path / "w.pt").rename(tmp_path / f"{name}.pt")
        found.append(described(dataset, tmp_path, "daformer", pretrained=str(path), **options))
    assert found[0] == found[1]
    assert [name for name in found[0] if found[0][name] != found[2][name]] == ["host#checkpoint"]


def test_the_same_in_another_process():
    code = "import json; from tests.engines.builders import tiny_trainer; print(json.dumps(tiny_trainer().describe()))"
    texts = [
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert texts[0].splitlines()[-1] == texts[1].splitlines()[-1]


def test_an_object_inside_another_part_is_told_by_its_name():
    pad = SpatialPadd("image", (8, 8))
    found = describe_parts({"pad": pad, "chain": Compose([pad]), "rate": 0.5})
    assert found["chain#transforms"] == '["the pad"]'
    assert found["pad#padder#spatial_size"] == "[8, 8]"
    assert found["rate"] == "0.5"
