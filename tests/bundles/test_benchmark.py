# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med benchmark`` on a bundle: the published settings, resumable, beside published numbers."""

from __future__ import annotations

import json
import shutil

import pytest

from dacal_med.cli import main
from tests.bundles.builders import BUNDLES, FIRST
from tests.processes import jobs_here

BUNDLE = BUNDLES["dacal_em"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A copy of a bundle with published settings of its own: a learning rate."""
    folder = tmp_path_factory.mktemp("bundles") / BUNDLE.name
    shutil.copytree(BUNDLE.folder, folder, ignore=shutil.ignore_patterns("data", "eval", "models"))
    (folder / "configs" / "published.json").write_text(json.dumps({"learning_rate": 0.0123}))
    return folder


@pytest.fixture(scope="module")
def grouped(tmp_path_factory, phantom_of):
    """The bundle's phantom, each evaluated image in a group of its own."""
    folder = tmp_path_factory.mktemp("grouped") / "phantom"
    shutil.copytree(phantom_of(BUNDLE), folder)
    content = json.loads((folder / "datalist.json").read_text())
    for number, entry in enumerate(content["target_val"]):
        entry["group"] = f"block {number}"
    (folder / "datalist.json").write_text(json.dumps(content))
    return folder


def line(bundle, data, *options, **overrides):
    given = [word for key, value in {**BUNDLE.quick, **overrides}.items() for word in (f"--{key}", str(value))]
    return ["benchmark", str(bundle), "--data-root", str(data), *options, *given]


def test_runs_the_published_settings_goes_on_and_stands_beside_the_numbers(bundle, grouped, capsys, monkeypatch):
    jobs_here(monkeypatch)
    options = ["--methods", "source_only", "--seeds", "3"]
    assert main(line(bundle, grouped, *options)) == 0
    text = capsys.readouterr().out
    out = bundle / "eval" / "benchmark"
    assert text.strip() == (out / "benchmark.md").read_text(encoding="utf-8").strip()
    assert "No published numbers are known" in text and "Settings: train.json, published.json." in text
    values, compared = (json.loads((out / f"{name}.json").read_text()) for name in ("benchmark", "comparison"))
    mean = compared["methods"]["source_only"]["mean"]
    assert values["here"]["source_only"]["scores"]["ECE (%)"]["mean"] == pytest.approx(100 * mean["ece"])
    assert set(mean["per_group"]) == {"block 0", "block 1"}
    run = out / "runs" / "source_only" / "seed_3"
    assert "published.json" in (run / "log.txt").read_text()
    assert "## Groups" in (out / "comparison.md").read_text(encoding="utf-8")

    before = (run / "metrics.json").stat().st_mtime_ns
    assert main(line(bundle, grouped, *options, "--task", "vnc3_to_lucchi")) == 0
    assert (run / "metrics.json").stat().st_mtime_ns == before  # nothing was trained again
    text = capsys.readouterr().out
    assert "| DA-ISC | 81.29 | 68.65 | — | val | published [1] |" in text
    assert "**Not comparable**: the published numbers are of 'Mitochondria, VNC III to Lucchi' with 165" in text


def test_lists_the_tasks_without_a_bundle(capsys):
    assert main(["benchmark", "--list"]) == 0
    assert "| gta2cityscapes | dacal_gta2cityscapes |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "overrides", "message"),
    [
        (["--task", "gta2cityscape"], {}, "--task: found 'gta2cityscape'; did you mean 'gta2cityscapes'?"),
        (["--methods", "harder"], {}, "--methods: found 'harder'"),
        ([], {"max_epoch": 2}, "did you mean 'max_epochs'"),
        ([], {"dataset_dir": "/data"}, "--dataset_dir: wanted --data-root"),
        ([], {"output_dir": "/data"}, "--output_dir: the comparison sets it for each run"),
    ],
)
def test_bad_input_is_told_before_anything_runs(tmp_path, phantom_of, capsys, options, overrides, message):
    out = tmp_path / "out"
    assert main([*line(FIRST.folder, phantom_of(FIRST), *options, **overrides), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not (out / "runs").exists()


def test_a_folder_that_is_no_bundle_and_missing_data(tmp_path, capsys):
    assert main(["benchmark", str(tmp_path), "--data-root", str(tmp_path)]) == 2
    assert "train.json; wanted the folder of a bundle" in capsys.readouterr().err
    assert main(["benchmark", str(FIRST.folder), "--data-root", str(tmp_path)]) == 2
    assert "datalist.json: not found" in capsys.readouterr().err
    assert main(["benchmark", "--data-root", str(tmp_path), str(FIRST.folder)]) == 2
    assert "wanted" in capsys.readouterr().err
