# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Paths with odd characters: each entry point takes the named folder, or says in one line why not and what to write."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
import unicodedata
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow, update_kwargs

from dacal_med import bundle as bundles
from dacal_med.command_line import config_files, literal
from dacal_med.comparison.compare import Comparison
from dacal_med.comparison.methods import find_methods
from dacal_med.deploy.export.deployed import load_deployed
from dacal_med.explanations import explained
from dacal_med.io.errors import InputError
from tests.bundles.builders import BUNDLES, FIRST
from tests.processes import run, run_here

PROGRAM = os.path.join("lib", "monai", "bundle", "__main__.py")
NFD = unicodedata.normalize("NFD", "müller")
# Left as they are by Fire and MONAI, as the names of folders in the current one.
TAKEN = ["a b", "a@b", "a'b", 'a"b', "müller", "脳", "a\\b", " a", "a%b", "a$b", "a*?", "a::b", "a.b", "-9a"]
# Another folder, a number, a list ... for Fire or MONAI.
CHANGED = [
    *(
        "study#12",
        "study # 12",
        "[study]",
        "study,other",
        "study ",
        "2024",
        "1e5",
        "0x10",
        "True",
        "{}",
        "'q'",
        "(study)",
    ),
    *(NFD, "ﬁle", "study#12/mr", "./study#12", "#"),
]
KEYS = {
    "train": (
        "dataset_dir",
        "output_dir",
        "ckpt_dir",
        "model_file",
        "bundle_root",
        "cache_dir",
        "checked",
        "fork_from",
    ),
    "evaluate": ("dataset_dir", "output_dir", "model_file"),
    "inference": ("dataset_dir", "output_dir", "model_file", "bundle_root"),
}


class Outcome:
    """What a ``monai.bundle run`` makes of one path: its value, or the line that refuses it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch, self.folder = monkeypatch, folder
        (folder / "only_start.json").write_text('{"initialize": ["$dacal_med.bundle.start()"]}')

    def of(self, kind: str, key: str, *words: str, bundle: Any = FIRST, more: tuple[str, ...] = ()) -> Any:
        """Run as Fire and MONAI do, to the first thing that the bundle does, and return the value of a key."""
        names = {"train": ["train"], "evaluate": ["train", "evaluate"], "inference": ["inference"]}[kind]
        files = [str(bundle.configs / f"{name}.json") for name in names]
        if kind != "inference":
            assert bundle.load(kind)["initialize"][0] == "$dacal_med.bundle.start()"  # the rest reads data
            files.append(str(self.folder / "only_start.json"))
        line = ["run", "--config_file", str(files), *words, *more]
        return self.evaluate(line, key, kind)

    def evaluate(self, line: list[str], key: str, kind: str = "train") -> Any:
        found: list[Any] = []

        def workflow(args_file: str | None = None, **overrides: Any) -> None:
            arguments = update_kwargs(args_file, **overrides)
            started = ConfigWorkflow(logging_file=False, workflow_type=None, **arguments)
            started.initialize()
            for step in ("run::0", "run::1") if kind == "inference" else ():
                assert "@check_paths" in started.parser[step]
                started.parser.get_parsed_content(step)
            found.append(started.parser.get_parsed_content(key))

        self.monkeypatch.setattr(sys, "argv", [PROGRAM, *line])
        self.monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        fire.Fire({"run": workflow}, command=line)
        return found[0]

    def refusal(self, kind: str, key: str, *words: str, **more: Any) -> str:
        """Return the one line that a user sees instead."""
        with pytest.raises((Exception, SystemExit)) as caught:
            value = self.of(kind, key, *words, **more)
            pytest.fail(f"{words} gave {value!r}")
        error = caught.value
        text = str(error) if isinstance(error, SystemExit) else explained(error)
        assert text is not None, error
        assert "\n" not in text
        return text


@pytest.fixture
def outcome(monkeypatch, tmp_path) -> Outcome:
    """Start from a folder with ``study`` in it, that nobody means."""
    (tmp_path / "study").mkdir()
    monkeypatch.chdir(tmp_path)
    return Outcome(monkeypatch, tmp_path)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_nothing_changes_is_taken(outcome, kind, name):
    for key in KEYS[kind]:
        if key == "bundle_root" and "::" in name:
            continue  # below which the model's path looks as if it had held "#"
        assert outcome.of(kind, key, f"--{key}", name) == name
        assert outcome.of(kind, key, f"--{key}={name}") == name


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("name", CHANGED)
def test_a_name_that_would_be_changed_is_refused(outcome, kind, name):
    for key in KEYS[kind]:
        # One key for every way to write it.
        for words in ([f"--{key}", name], [f"--{key}={name}"], [f"-{key}", name])[: 3 if key == "output_dir" else 1]:
            message = outcome.refusal(kind, key, *words)
            assert f"{key}: found {name!r}, which monai.bundle reads as " in message
    assert sorted(os.listdir()) == ["only_start.json", "study"]


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("place", ["", "/data/", "../"])
def test_what_is_proposed_instead_names_that_very_path(outcome, name, place):
    name = place + name
    words = ["--output_dir", name]
    if place and "#" not in name:
        assert outcome.of("train", "output_dir", *words) == name
        return
    message = outcome.refusal("train", "output_dir", *words)
    proposed = shlex.split(message.partition("wanted ")[2].removesuffix(", or a name without '#'"))
    for kind in KEYS:
        assert os.path.normpath(outcome.of(kind, "output_dir", *proposed)) == os.path.normpath(name)


@pytest.mark.parametrize("name", [*BUNDLES])
def test_every_bundle_refuses_and_takes_alike(outcome, name):
    for kind in KEYS:
        for key in ("dataset_dir", "output_dir"):
            assert f"{key}: found 'study#12'" in outcome.refusal(
                kind, key, f"--{key}", "study#12", bundle=BUNDLES[name]
            )
            assert outcome.of(kind, key, f"--{key}", "./[study], 脳", bundle=BUNDLES[name]) == "./[study], 脳"


@pytest.mark.parametrize("kind", KEYS)
def test_text_that_is_looked_up_is_never_a_folder_of_that_name(outcome, kind):
    for name in ("@data", "$data", "%data"):
        Path(name).mkdir()
        assert "data" in outcome.refusal(kind, "output_dir", "--output_dir", name)
        assert outcome.of(kind, "output_dir", "--output_dir", f"./{name}") == f"./{name}"
    assert outcome.of(kind, "output_dir", "--output_dir", "@model_file", "--model_file", "/m.pt") == "/m.pt"
    assert outcome.of(kind, "output_dir", "--output_dir", "$os.path.join('a', 'b')") == "a/b"


@pytest.mark.parametrize("kind", KEYS)
def test_missing_values_none_and_homes_are_refused(outcome, kind):
    for words in (["--output_dir", "-x"], ["--output_dir"], ["--output_dir", "--seed"], ["--output_dir", "None"]):
        message = outcome.refusal(kind, "output_dir", *words)
        assert "output_dir" in message or "override --x" in message  # which Fire takes for an option
    message = outcome.refusal(kind, "output_dir", "--output_dir=~/out")
    assert "output_dir: found '~/out'" in message
    if kind != "inference":
        assert message.endswith(f"wanted {os.path.expanduser('~/out')!r}")


@pytest.mark.parametrize("name", ["study#12", "/data/study#12", "~/out"])
def test_a_file_of_arguments_and_a_configuration_are_held_to_the_same(outcome, name):
    for key in ("output_dir", "train#handlers#2#output_dir"):
        Path("arguments.json").write_text(json.dumps({"config_file": str(FIRST.configs / "train.json"), key: name}))
        with pytest.raises(Exception) as caught:
            outcome.evaluate(["run", "--args_file", "arguments.json"], "output_dir")
        assert f"{key}: found {name!r}" in str(explained(caught.value))
        Path("only_start.json").write_text(json.dumps({"initialize": ["$dacal_med.bundle.start()"], key: name}))
        message = outcome.refusal("train", "output_dir")
        assert f"{key}: found {name!r}" in message
    if "#" in name:
        proposed = json.loads(message.partition("wanted ")[2].partition(", or a text")[0])
        Path("only_start.json").write_text(
            json.dumps({"initialize": ["$dacal_med.bundle.start()"], "output_dir": proposed})
        )
        assert outcome.of("train", "output_dir") == name
        Path("arguments.json").write_text(json.dumps({"output_dir": name}))
        line = ["run", "--config_file", str(FIRST.configs / "inference.json"), "--args_file", "arguments.json"]
        with pytest.raises(SystemExit, match="output_dir: found"):
            outcome.evaluate(line, "output_dir", "inference")


@pytest.mark.parametrize(
    "words", [["--class_names", "['a#b', 'c']"], ["--network_def", "{'_target_': 'UNet', 'act': 'x#y'}"]]
)
def test_other_texts_with_a_hash_are_refused_too(outcome, words):
    assert "which monai.bundle reads as" in outcome.refusal("train", "seed", *words)


def test_expressions_with_references_between_levels_pass(outcome):
    words = ("--validate#inferer#overlap", "$0.5 if @train#trainer#amp else 0.25", "--pad", "@train#handlers")
    assert outcome.of("train", "seed", *words) == 0
    assert outcome.of("train", "resume", "--resume", "True") is True


@pytest.mark.parametrize("name", ["a,b", "[study]", "study#12 ,x", "a'b", NFD, " a "])
def test_a_bundle_in_an_odd_folder_is_found_from_anywhere(monkeypatch, tmp_path, name):
    folder = tmp_path / name / "bundle"
    (folder / "configs").mkdir(parents=True)
    for file in ("train.json", "metadata.json", "evaluate.json"):
        shutil.copyfile(FIRST.configs / file, folder / "configs" / file)
    absolute = str(folder / "configs" / "train.json")
    below = os.path.join(".", name, "bundle", "configs", "train.json")
    monkeypatch.chdir(tmp_path)
    for typed in (absolute, below, str([absolute]), str([below, absolute])):
        assert config_files(typed) != []
        monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--config_file", typed])
        assert os.path.samefile(bundles.find_root("dacal_ct2mr"), folder)
        with pytest.raises(InputError, match="max_epoch"):
            bundles.check_overrides([*sys.argv[1:], "--max_epoch", "3"])
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["python"])
    assert bundles.find_root("dacal_ct2mr") == "."


@pytest.mark.parametrize("name", ["res#1", "[res], 脳", "a'b"])
def test_runs_of_a_comparison_write_where_it_says(outcome, phantom, name):
    odd = Path.cwd() / name
    data = shutil.copytree(phantom, odd / "data")
    root = shutil.copytree(FIRST.folder, odd / "bundle", ignore=shutil.ignore_patterns("data", "eval", "models"))
    train = str(Path(root) / "configs" / "train.json")
    methods = ("source_only", "hard", "hard+ts")
    comparison = Comparison((train,), methods, (0,), odd / "out", (("dataset_dir", literal(data)),))
    config = comparison._config()
    assert config.get_parsed_content("bundle_root") == str(root)
    for job in comparison._jobs(find_methods(methods), config).values():
        line = [*job.command[3:], "--config_file", str([*_files(job.command), str(Path.cwd() / "only_start.json")])]
        for key, wanted in (("output_dir", job.folder), ("dataset_dir", data), ("bundle_root", root)):
            found = outcome.evaluate(line, key)
            assert os.path.samefile(found, wanted) if key != "output_dir" else found == str(wanted)
        if "--fork_from" in line:
            assert outcome.evaluate(line, "fork_from").startswith(f"{odd / 'out'}{os.sep}")
        if job.name.endswith("calibration"):
            content = json.loads((job.folder / "method.json").read_text())["calibration"]["folders"]
            assert ConfigParser(content).get_parsed_content("ts").startswith(f"{odd / 'out'}{os.sep}")


def _files(command):
    return config_files(command[command.index("--config_file") + 1])


def test_a_trained_bundle_in_an_odd_folder_is_loaded(trained, tmp_path):
    odd = tmp_path / "bundle#1 [a], 'b'"
    shutil.copytree(FIRST.folder, odd, ignore=shutil.ignore_patterns("data", "eval", "models"))
    (odd / "models").mkdir()
    for name in ("model.pt", "model.json"):
        shutil.copyfile(trained / name, odd / "models" / name)
    overrides = [(key, str(value)) for key, value in FIRST.tiny.items()]
    assert load_deployed(odd, odd / "models" / "model.pt", overrides).bundle == odd


def test_training_and_inference_between_odd_folders(trained, phantom, tmp_path, subprocess_environment):
    """A refusal is one line and writes nothing, that of the training in a process of its own; another name is taken."""
    odd = tmp_path / "[a], 'b'"
    images = shutil.copytree(Path(phantom) / "mr" / "images", odd / "in [1]")
    (tmp_path / "study").mkdir()
    config = ["--config_file", str(FIRST.configs / "train.json")]
    line = [sys.executable, "-m", "monai.bundle", "run", *config, "--dataset_dir", "study#12", "--output_dir", "out"]
    done = run(line, tmp_path, subprocess_environment)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("dacal_med: --dataset_dir: found 'study#12', which monai.bundle")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
    config = ["--config_file", str(FIRST.configs / "inference.json")]
    config += [word for key, value in FIRST.tiny.items() for word in (f"--{key}", str(value))]
    line = [sys.executable, "-m", "monai.bundle", "run", *config, "--model_file", str(trained / "model.pt")]
    done = run_here([*line, "--dataset_dir", "in [1]", "--output_dir", "out#1"], odd)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("output_dir: found 'out#1', which monai.bundle reads as ")
    assert sorted(os.listdir(odd)) == ["in [1]"]
    done = run_here([*line, "--dataset_dir", "in [1]", "--output_dir", literal("out#1")], odd)
    assert done.returncode == 0, done.stderr[-2000:]
    names = [path.name.removesuffix(".nii.gz") for path in Path(images).iterdir()]
    wanted = {f"{name}_{what}.nii.gz" for name in names for what in ("seg", "confidence")}
    assert set(os.listdir(odd / "out#1")) == wanted
