# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The published protocols of the driving bundles as they are planned and shown: overlays, folders, subsets, columns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from monai.bundle import ConfigParser

from dacal_med.bundle import read_config
from dacal_med.cli import main
from dacal_med.comparison import compare
from dacal_med.comparison.schedule import RECORD
from dacal_med.data.street_labels import TRAIN_NAMES
from dacal_med.io.errors import InputError
from dacal_med.preparation.sets.street_tables import SYNTHIA_13, SYNTHIA_16
from tests.bundles.builders import BUNDLES, FIRST
from tests.bundles.test_every_bundle import SMALL, TINY_HEAD, TINY_MIT
from tests.processes import jobs_here

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


def test_19_classes_fill_the_columns_of_16_and_13(phantom_of, tmp_path, capsys, monkeypatch):
    """The published settings but for sizes; three of the classes are in no label of the source."""
    jobs_here(monkeypatch)
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(phantom_of(SYNTHIA), data)
    content = json.loads((data / "datalist.json").read_text())
    content["labels"] = {**{str(value): name for value, name in enumerate(TRAIN_NAMES)}, "255": "ignore"}
    (data / "datalist.json").write_text(json.dumps({**content, "name": "SYNTHIA to Cityscapes, 19 classes"}))
    (data / "class_counts.json").unlink()
    small = {
        **SMALL,
        "max_epochs": 2,
        "encoder_weights": "$None",
        "network_def#encoder_options": TINY_MIT,
        "network_def#head_options": TINY_HEAD,
        "validate#inferer#scale": 1.0,
        "roi_size": [32, 32],
    }
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    options = ["--methods", "hard", "--seeds", "0", "--out", str(out)]
    assert benchmark(SYNTHIA, data, *options, *words) == 0, capsys.readouterr().err
    values = json.loads((out / "benchmark.json").read_text())
    summary = json.loads((out / "comparison.json").read_text())["methods"]["hard"]["mean"]
    scores = values["here"]["hard"]["scores"]
    for number, found in ((19, summary), *((n, summary["class_subsets"][f"{n} classes"]) for n in (16, 13))):
        assert scores[f"mIoU, {number} classes (%)"]["mean"] == pytest.approx(100 * found["miou"])
    text = (out / "benchmark.md").read_text(encoding="utf-8")
    assert "| **DAFormer** | 60.9 |" in text and "with 500 images in target_val" in text


def test_fewer_classes_than_the_published_labels_are_told_before_anything_runs(phantom_of, tmp_path, planned, capsys):
    assert benchmark(SYNTHIA, phantom_of(SYNTHIA), "--out", str(tmp_path)) == 130
    assert "of labels with 19 classes, the results here of labels with 16; pixels" in capsys.readouterr().err


def test_data_of_another_task_are_told_before_anything_runs(phantom_of, tmp_path, planned, capsys):
    assert benchmark(SYNTHIA, phantom_of(GTA), "--out", str(tmp_path)) == 130
    told = capsys.readouterr().err
    assert "dacal_med: not comparable: the published numbers are of 'SYNTHIA to Cityscapes' with 500" in told
    assert "the results here of 'GTA5 to Cityscapes' with 2." in told


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


@pytest.mark.parametrize(
    ("protocol", "overlays"),
    [
        ("daformer", []),
        ("hrda", ["published_hrda"]),
        ("mic", ["published_mic"]),
        ("mic_hrda", ["published_hrda", "published_mic"]),
    ],
)
def test_a_protocol_is_its_overlays_and_no_folder_holds_two(phantom_of, tmp_path, planned, capsys, protocol, overlays):
    options = ["--methods", "dacal", "--seeds", "0", "--out", str(tmp_path), "--protocol"]
    assert benchmark(GTA, phantom_of(GTA), *options, protocol) == 130
    files = planned[0].command[planned[0].command.index("--config_file") + 1]
    names = ["train", "published", *overlays, "method"]
    assert [Path(file).stem for file in json.loads(files.replace("'", '"'))] == names
    other = "hrda" if protocol != "hrda" else "mic"
    # Another method, so that no run of the one protocol is one of the other.
    assert benchmark(GTA, phantom_of(GTA), *options, other, "--methods", "hard") == 2
    told = capsys.readouterr().err
    assert f"holds runs of --protocol {protocol}, wanted a folder for {other}" in told
    assert benchmark(GTA, phantom_of(GTA), *options, protocol) == 130  # goes on


def test_protocols_have_folders_of_their_own(phantom_of, planned, tmp_path, monkeypatch):
    bundle = tmp_path / GTA.name
    shutil.copytree(GTA.folder, bundle, ignore=shutil.ignore_patterns("data", "eval", "models"))
    for protocol, folder in (("daformer", "benchmark"), ("mic_hrda", "benchmark_mic_hrda")):
        line = ["benchmark", str(bundle), "--data-root", phantom_of(GTA), "--protocol", protocol]
        assert main(line) == 130
        assert all((bundle / "eval" / folder) in job.folder.parents for job in planned)


@pytest.mark.parametrize(
    ("bundle", "options", "message"),
    [
        (GTA, ["--protocol", "micr"], "--protocol: found 'micr', wanted one of daformer, hrda, mic, mic_hrda"),
        (FIRST, ["--protocol", "hrda"], "--protocol hrda: found no"),
        (GTA, ["--config_file", "a.json", "b.json"], "--config_file: a benchmark runs the bundle's own files; wanted"),
        (GTA, ["--config_file=a.json"], "--config_file: a benchmark runs the bundle's own files; wanted --protocol"),
    ],
)
def test_bad_protocols_and_files_are_told_before_anything_runs(tmp_path, capsys, bundle, options, message):
    assert benchmark(bundle, tmp_path, "--out", str(tmp_path), *options) == 2
    assert message in capsys.readouterr().err


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
