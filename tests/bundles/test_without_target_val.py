# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A data set without labelled target cases trains to its end, and is told to have no scores."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import monai.bundle
import pytest
import torch
from monai.networks.nets import UNet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dacal_med.comparison.compare import Comparison
from dacal_med.explanations import input_error_in
from dacal_med.io.errors import InputError
from tests.bundles.builders import BUNDLES, Bundle, configs


def options_of(bundle: Bundle, dataset, out, **more) -> dict:
    """Overrides of a run of four iterations, whose warm-up ends after the first two."""
    options = {**bundle.quick, "dataset_dir": str(dataset), "output_dir": str(out), "num_workers": 0, **more}
    return {"model_file": str(out / "model.pt"), **options}


def trained(bundle: Bundle, dataset, out, *overlays: str, **more) -> dict:
    options = options_of(bundle, dataset, out, **more)
    monai.bundle.run(config_file=configs("train", *overlays, bundle=bundle), **options)
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    """The data of a bundle with an empty ``target_val`` (3D), or with none (2D)."""

    @cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp("without") / "data"
        BUNDLES[name].make_data(folder, num_target_val=0)
        if BUNDLES[name].spatial_dims == 2:
            path = folder / "datalist.json"
            content = json.loads(path.read_text())
            assert content.pop("target_val") == []
            path.write_text(json.dumps(content))
        return folder

    return make


@pytest.mark.parametrize("name", ["dacal_ct2mr", "dacal_em"])
def test_trains_to_the_end_and_tells_that_nothing_was_measured(name, without, tmp_path, capsys):
    bundle, out = BUNDLES[name], tmp_path / "out"
    out.mkdir()
    for stale in ("cases.csv", "statistics.pt", "reliability.png"):
        (out / stale).write_text("of an earlier run with scores")
    dataset = without(name)
    metrics = trained(bundle, dataset, out)
    assert (metrics["before"], metrics["after"]) == (None, None)
    assert metrics["skipped"] == {"skipped": 0, "meta_skipped": 0, "overflows": 0}
    assert "no labelled target cases in target_val: nothing was measured" in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(("events", "."))) == [
        "cache",
        "checkpoints",
        "metrics.json",
        "model.json",
        "model.pt",
    ]
    assert torch.load(out / "model.pt", weights_only=True)
    events = EventAccumulator(str(out)).Reload()
    assert [tag for tag in events.Tags()["scalars"] if tag.startswith("target_val")] == []
    assert events.Tags()["tensors"] == ["target_val/text_summary"]
    # It goes on from its checkpoint, which holds no scores either.
    assert trained(bundle, dataset, out, resume=True)["after"] is None

    with pytest.raises(Exception) as caught:
        options = options_of(bundle, dataset, tmp_path / "eval", model_file=str(out / "model.pt"))
        monai.bundle.run(config_file=configs("train", "evaluate", bundle=bundle), **options)
    error = input_error_in(caught.value)
    assert str(error) == (
        "validate#dataset: found no labelled case, wanted some to evaluate on; give them as 'target_val' in the "
        "datalist.json"
    )
    assert not list((tmp_path / "eval").glob("evaluation.json"))


@pytest.mark.parametrize("name", ["dacal_ct2mr", "dacal_em"])
@pytest.mark.parametrize("overlay", ["mic", "hrda", "daformer", "source_only", "hard_labels"])
def test_trains_with_every_overlay(name, overlay, without, tmp_path):
    bundle, options = BUNDLES[name], {}
    own = {"channels": [4, 8], "strides": [2], "num_res_units": 1}
    if overlay == "hrda":
        bundle = replace(bundle, network={f"network_def#network#{key}": value for key, value in own.items()})
    if overlay == "daformer":
        frozen = UNet(bundle.spatial_dims, bundle.in_channels, len(bundle.classes), **own)
        torch.save(frozen.state_dict(), tmp_path / "pretrained.pt")
        options = {
            **{f"host#frozen#{key}": value for key, value in own.items()},
            **{"host#layer": "model.0", "host#frozen_layer": "model.0"},
            **{"pretrained": str(tmp_path / "pretrained.pt"), "train#dataset#source_sampling#min_voxels": 1},
        }
    assert trained(bundle, without(name), tmp_path, overlay, **options)["after"] is None


def test_a_comparison_is_refused_before_anything_is_written(without, tmp_path):
    dataset = without("dacal_em")
    comparison = Comparison(
        config_files=(configs("train", bundle=BUNDLES["dacal_em"]),),
        methods=("hard", "dacal"),
        seeds=(0,),
        folder=tmp_path / "comparison",
        overrides=(("dataset_dir", str(dataset)),),
    )
    with pytest.raises(InputError, match="'target_val' has 0 labelled case"):
        comparison.run()
    assert not (tmp_path / "comparison").exists()
