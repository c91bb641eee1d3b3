# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The published protocols of the driving bundles as they are planned and shown: overlays, folders, subsets, columns."""

from __future__ import annotations

import json

import pytest
from monai.bundle import ConfigParser

from dacal_med.bundle import read_config
from dacal_med.cli import main
from dacal_med.comparison import compare
from dacal_med.comparison.schedule import RECORD
from dacal_med.data.street_labels import TRAIN_NAMES
from dacal_med.errors import InputError
from dacal_med.preparation.sets.street_tables import SYNTHIA_13, SYNTHIA_16
from tests.bundles.builders import BUNDLES

GTA, SYNTHIA = BUNDLES["dacal_gta2cityscapes"], BUNDLES["dacal_synthia2cityscapes"]
SUBSETS = {"16 classes": SYNTHIA_16, "13 classes": SYNTHIA_13}
CAMVID = ("Sky", "Building", "Road", "Car", "Pedestrian")


@pytest.fixture
def planned(monkeypatch):
    """The jobs of a command, none of which runs; their records are written as if they had begun."""
    jobs = []

    def plan(given, max_parallel):
        jobs[:] = given
        for job in given:
            (job.folder / RECORD).write_text(json.dumps({"fingerprint": "", "command": list(job.command)}))
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run_jobs", plan)
    return jobs


def benchmark(bundle, data, *options):
    return main(["benchmark", str(bundle.folder), "--data-root", str(data), *options])


def settings(bundle, *names, **overrides):
    parser = ConfigParser(read_config([bundle.configs / f"{name}.json" for name in names]))
    parser.update(overrides)
    return parser


@pytest.mark.parametrize(
    ("classes", "subsets"),
    [(TRAIN_NAMES, SUBSETS), (SYNTHIA_16, SUBSETS), (SYNTHIA_13, {"13 classes": SYNTHIA_13}), (CAMVID, {})],
)
def test_a_subset_is_measured_where_all_of_its_classes_are(classes, subsets):
    found = settings(SYNTHIA, "train", class_names=list(classes)).get_parsed_content("validate#evaluator#class_subsets")
    assert {name: tuple(members) for name, members in found.items()} == subsets


def test_nothing_is_shared_or_waited_for_without_a_warm_up(phantom_of, tmp_path, planned):
    """The published protocol self-trains from the first iteration."""
    assert benchmark(GTA, phantom_of(GTA), "--seeds", "0", "--out", str(tmp_path)) == 130
    assert [job.name for job in planned] == ["source_only, seed 0", "hard, seed 0", "dacal, seed 0"]
    for job in planned:
        assert job.following == () and "--fork_from" not in job.command
        assert "keep_source_end" not in json.loads((job.folder / "method.json").read_text())
    options = ["--seeds", "0", "--out", str(tmp_path / "warm"), "--settle_epochs", "1"]
    assert benchmark(GTA, phantom_of(GTA), *options) == 130
    assert json.loads((planned[0].folder / "method.json").read_text())["keep_source_end"] is True
    for job in planned[1:]:
        assert job.following == ("source_only, seed 0",) and "--fork_from" in job.command


def test_other_names_for_things_are_wanted_by_the_key(tmp_path):
    config = settings(GTA, "train", "published", class_names=list(CAMVID))
    with pytest.raises(Exception) as error:
        config.get_parsed_content("host#thing_classes")
    cause = error.value
    while not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    assert "things: found traffic light, traffic sign, person" in str(cause)
    assert "wanted --things \"['NAME', ...]\" with some of Sky, Building, Road, Car, Pedestrian" in str(cause)
    config = settings(GTA, "train", "published", class_names=list(CAMVID), things=["Car", "Pedestrian", "Bicyclist"])
    assert config.get_parsed_content("host#thing_classes") == ["Car", "Pedestrian"]
