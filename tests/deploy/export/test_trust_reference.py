# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The reference: what it is made from, what it must not see, and that a site can use it."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dacal_med.cli import main
from dacal_med.core.tensors import plain
from dacal_med.deploy.export.deployed import training_seed
from dacal_med.deploy.export.trust_reference import (
    APPEARANCES,
    TrainedModel,
    build_reference,
    case_shifts,
    held_out_shifts,
)
from dacal_med.deploy.runtime.trust import TrustAccumulator
from dacal_med.io.errors import InputError
from tests.deploy.export.builders_trust import OVERRIDES, TRAIN, data_set, weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trust")
    data_set(root / "data")
    weights(root / "model.pt")
    return root


@pytest.fixture(scope="module")
def model(folder: Path) -> TrainedModel:
    return TrainedModel(TRAIN, folder / "model.pt", folder / "data", 3, OVERRIDES)


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict:
    return build_reference(TRAIN, folder / "model.pt", folder / "data", 3, OVERRIDES)


def test_it_says_what_it_is_made_from(folder, reference):
    assert reference["class_names"] == ["background", "cube"]
    assert reference["made_from"] == {
        "target_images": 3,
        "held_out_source_cases": 2,
        "appearances": 1 + APPEARANCES,
        "seed": 3,
        "model_sha256": hashlib.sha256((folder / "model.pt").read_bytes()).hexdigest(),
    }
    assert [len(views) for views in reference["shifts"]["cube"]] == [1 + APPEARANCES] * 2
    assert len(reference["intensity"]["distances"]) == 3
    assert np.allclose(np.sum(reference["intensity"]["mean"], axis=-1), 1.0, atol=1e-5)


def test_it_says_nothing_about_patients_or_places(folder, reference):
    text = json.dumps(reference)
    assert str(folder) not in text and "nii" not in text


def test_the_same_model_gives_the_same_reference(folder, reference):
    assert build_reference(TRAIN, folder / "model.pt", folder / "data", 3, OVERRIDES) == reference


def test_evaluation_images_are_not_read(folder, reference, tmp_path):
    other = data_set(tmp_path / "data")
    for file in other.glob("target_val*"):
        file.write_bytes(b"not an image")
    assert build_reference(TRAIN, folder / "model.pt", other, 3, OVERRIDES) == reference


def test_a_site_can_use_it(model, reference):
    read = model.preprocessing(labelled=False, intensity="target_intensity")
    image = plain(read(dict(model.get("datalist").target_train[0]))["image"])
    trust = TrustAccumulator(model.class_names, 1.0, json.loads(json.dumps(reference)), model.background)
    trust.update(model.predict(image), image)
    result = trust.result()
    # One of the images that the reference is made from is not unlike them.
    assert result["out_of_distribution"]["unusual"] is False
    assert result["classes"]["cube"]["interval_from_cases"] == 2


def test_the_first_view_is_the_case_as_it_is(model, reference):
    read = model.preprocessing(labelled=True, intensity="source_intensity")
    item = read(dict(model.get("source_split")[1][0]))
    shifts = case_shifts(model, model.predict(plain(item["image"])), plain(item["label"]).long())
    assert list(shifts["cube"]) == pytest.approx(list(reference["shifts"]["cube"][0][0]), abs=1e-6)


def test_the_shift_is_how_much_too_sure_the_model_is(model):
    # 100 voxels predicted at 0.9 of which half are true, 100 others at 0.2 of which none is, one of unknown truth.
    p = torch.cat([torch.full((100,), 0.9), torch.full((101,), 0.2)])
    label = torch.cat([torch.ones(50), torch.zeros(150), torch.tensor([255.0])]).long()
    shifts = case_shifts(model, torch.stack([1 - p, p]), label[None])
    a, d = shifts["cube"]
    assert a == pytest.approx(-math.log(9), abs=1e-5)
    assert d == pytest.approx(math.log(0.5 / 100.5) - math.log(0.25), abs=1e-5)


def test_a_class_that_is_nowhere_says_nothing_and_a_missed_one_says_it_twice(model):
    nowhere = torch.tensor([[0.9, 0.9], [0.1, 0.1]])
    assert case_shifts(model, nowhere, torch.zeros(1, 2, dtype=torch.long)) == {}
    a, d = case_shifts(model, nowhere, torch.ones(1, 2, dtype=torch.long))["cube"]
    assert a == d > 0


def test_without_held_out_cases_there_are_no_shifts(folder):
    model = TrainedModel(TRAIN, folder / "model.pt", folder / "data", 3, {**OVERRIDES, "held_out_share": 0.0})
    assert held_out_shifts(model) == {"cube": []}


def test_one_target_image_is_too_few(folder, tmp_path):
    with pytest.raises(InputError, match=r"target_train: found 1 image\(s\), wanted 2"):
        build_reference(TRAIN, folder / "model.pt", data_set(tmp_path, targets=1), 3, OVERRIDES)


def test_a_missing_configuration_is_named(folder):
    with pytest.raises(InputError, match=r"found no file nowhere\.json"):
        build_reference("nowhere.json", folder / "model.pt", folder / "data", 3)


def test_the_command_writes_it(folder, reference, tmp_path, capsys):
    out = tmp_path / "configs" / "trust.json"
    words = ["trust-reference", "--config_file", str(TRAIN), "--model_file", str(folder / "model.pt")]
    words += ["--dataset_dir", str(folder / "data"), "--seed", "3", "--out", str(out)]
    words += ["--roi_size", "[16,16,16]", "--spacing=[1.0,1.0,1.0]", "--held_out_share", "0.5"]
    assert main(words) == 0
    assert json.loads(out.read_text()) == json.loads(json.dumps(reference))
    assert "3 target images, 2 held-out source cases" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, {}])
def test_the_seed_is_that_of_the_training_run(tmp_path, content):
    model_file = tmp_path / "model.pt"
    if content is not None:
        (tmp_path / "model.json").write_text(json.dumps(content))
    assert training_seed(model_file, 3) == 3
    with pytest.raises(InputError, match=r"model\.json: found no seed of the training run; wanted one, or --seed"):
        training_seed(model_file, None)
    (tmp_path / "model.json").write_text('{"seed": 5}')
    assert training_seed(model_file, None) == training_seed(model_file, 5) == 5
    with pytest.raises(InputError, match="--seed: found 3, wanted that of the training run, which is 5 in "):
        training_seed(model_file, 3)


def test_the_command_tells_bad_input_in_a_line(folder, tmp_path, capsys):
    words = ["trust-reference", "--config_file", str(TRAIN), "--model_file", str(tmp_path / "no.pt")]
    assert main([*words, "--dataset_dir", str(folder / "data"), "--seed", "3", "--out", str(tmp_path / "t.json")]) == 2
    assert "no weights at" in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()
