# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med compare`` on a bundle, from a clean folder to tables."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dacal_med.cli import main
from dacal_med.handlers.sums import load_sums
from tests.bundles.builders import CONFIGS, QUICK
from tests.handlers.test_claim import held_elsewhere
from tests.processes import jobs_here, run

METHODS = ["source_only", "hard", "hard+ts", "hard+pseudocal", "soft", "target_oracle"]


def line(folder: Path, dataset: str, *methods: str, **options: object) -> list[str]:
    given = {**QUICK, "max_epochs": 3, "dataset_dir": dataset, **options}
    overrides = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    named = ["--methods", *methods] if methods else []
    config = str(CONFIGS / "train.json")
    return ["compare", "--config_file", config, *named, "--seeds", "0", "--out", str(folder), *overrides]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, phantom) -> Path:
    """A comparison in which ``soft`` fails: its checkpoints have nowhere to go."""
    folder = tmp_path_factory.mktemp("compare")
    blocked = folder / "runs" / "soft" / "seed_0" / "checkpoints"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("not a folder")
    with pytest.MonkeyPatch.context() as patch:
        jobs_here(patch)
        assert main([*line(folder, phantom, *METHODS), "--jobs", "2"]) == 1
    return folder


def test_methods_that_worked_have_results_and_the_failed_one_its_reason(compared):
    result = json.loads((compared / "comparison.json").read_text())
    methods = result["methods"]
    assert list(methods) == METHODS
    for name in METHODS:
        if name != "soft":
            assert set(methods[name]["seeds"]) == {"0"} and not methods[name]["failed"]
            assert methods[name]["mean"]["dice"] == methods[name]["seeds"]["0"]["dice"]
            assert methods[name]["std"]["dice"] is None
    assert methods["soft"]["seeds"] == {} and "cannot write checkpoints" in methods["soft"]["failed"]["0"]
    assert result["reference"] == "hard"
    text = (compared / "comparison.md").read_text()
    assert "cannot write checkpoints" in text and "(oracle)" in text
    assert (compared / "reliability.png").stat().st_size > 10_000
    assert (compared / "dice_ece.png").stat().st_size > 10_000


def test_methods_share_their_warm_up(compared):
    runs = compared / "runs"
    metrics = {m: json.loads((runs / m / "seed_0" / "metrics.json").read_text()) for m in ("source_only", "hard")}
    assert metrics["hard"]["before"] == metrics["source_only"]["before"]
    assert metrics["hard"]["after"] != metrics["source_only"]["after"]
    assert "forked from" in (runs / "hard" / "seed_0" / "log.txt").read_text()


def test_calibrators_start_from_the_trained_network(compared):
    runs = compared / "runs"
    trained = json.loads((runs / "hard" / "seed_0" / "metrics.json").read_text())["after"]
    for name in ("hard+ts", "hard+pseudocal"):
        metrics = json.loads((runs / name / "seed_0" / "metrics.json").read_text())
        assert metrics["before"]["nll"] == pytest.approx(trained["nll"], rel=1e-5)
        assert metrics["after"]["dice"] == pytest.approx(trained["dice"], rel=1e-5)
        assert metrics["after"]["nll"] != pytest.approx(trained["nll"], rel=1e-5)


def test_the_oracle_s_folds_are_put_together_in_the_order_of_the_cases(compared):
    runs = compared / "runs"
    merged = load_sums(runs / "target_oracle" / "seed_0" / "statistics.pt").cases
    others = load_sums(runs / "hard" / "seed_0" / "statistics.pt").cases
    assert [c.voxel_count.sum(1).tolist()[0] for c in merged] == [c.voxel_count.sum(1).tolist()[0] for c in others]
    assert [c.confusion.sum(1).tolist() for c in merged] == [c.confusion.sum(1).tolist() for c in others]


def test_the_same_command_goes_on_where_it_was(compared, phantom, capsys):
    """Only the failed run is tried again, here with its obstacle removed and in a process of its own."""
    before = (compared / "runs" / "hard" / "seed_0" / "metrics.json").stat().st_mtime_ns
    (compared / "runs" / "soft" / "seed_0" / "checkpoints").unlink()
    assert main([*line(compared, phantom, *METHODS), "--jobs", "2"]) == 0
    assert (compared / "runs" / "hard" / "seed_0" / "metrics.json").stat().st_mtime_ns == before
    assert json.loads((compared / "comparison.json").read_text())["methods"]["soft"]["failed"] == {}
    assert "soft labels, T = 1" in capsys.readouterr().out


def test_another_configuration_does_not_mix_with_what_is_there(compared, phantom, capsys):
    assert main(line(compared, phantom, "hard", learning_rate=0.1)) == 2
    assert "belongs to another configuration" in capsys.readouterr().err


def test_two_comparisons_do_not_train_into_one_folder(tmp_path, phantom, capsys):
    with held_elsewhere(tmp_path):
        assert main(line(tmp_path, phantom, "hard")) == 2
    assert f"--out: another run is writing to {tmp_path} (process " in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["harder"], {}, "found 'harder'; known are source_only"),
        (["hard"], {"max_epoch": 3}, "did you mean 'max_epochs'"),
        (["hard"], {"dataset_dir": "/nowhere"}, "/nowhere/datalist.json: not found"),
        (["hard"], {"output_dir": "/elsewhere"}, "--output_dir: the comparison sets it for each run"),
        (["hard", "dacal"], {"labeller#name": "soft"}, "--labeller#name: method 'hard' sets it"),
        (["source_only"], {"host#complement": "none"}, "--host#complement: method 'source_only' sets it"),
        (["dacal", "hard"], {"host": "{'name': 'mic'}"}, "--host: method 'hard' sets it"),
    ],
)
def test_bad_input_is_told_before_anything_runs(tmp_path, phantom, capsys, methods, options, message):
    assert main(line(tmp_path / "out", phantom, *methods, **options)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_one_target_case_is_too_few(tmp_path, phantom, capsys):
    content = json.loads((Path(phantom) / "datalist.json").read_text())
    for key in ("source", "target_train", "target_val"):
        content[key] = [{k: str(Path(phantom) / v) for k, v in entry.items()} for entry in content[key]]
    content["target_val"] = content["target_val"][:1]
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    assert main(line(tmp_path / "out", str(tmp_path), "hard")) == 2
    assert "'target_val' has 1 labelled case(s), wanted at least 2" in capsys.readouterr().err


def test_it_is_a_command(tmp_path, subprocess_environment, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["compare", "--help"])
    assert "--seeds" in capsys.readouterr().out
    wrong = [sys.executable, "-m", "dacal_med", *line(tmp_path, "/nowhere", "hard")]
    done = run([*wrong, "stray"], tmp_path, subprocess_environment)
    assert done.returncode == 2 and "found 'stray', wanted --key value" in done.stderr
    assert "Traceback" not in done.stderr
