# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Malformed configurations, through ``monai.bundle run`` and through the commands that read a configuration."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacal_med import bundle
from dacal_med.cli import main
from dacal_med.explanations import explained
from dacal_med.io.errors import InputError
from tests.bundles.builders import BUNDLES
from tests.fuzz.outcomes import contents, in_time
from tests.fuzz.test_datalists import STRANGE, TEXTS, places, replaced

EM = BUNDLES["dacal_em"]
Config = dict[str, Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Config:
    """A tiny configuration that builds the training and its evaluation, and runs neither."""
    folder = tmp_path_factory.mktemp("good")
    config = EM.load("train")
    for key, value in EM.quick.items():
        *path, last = key.split("#")
        node = config
        for part in path:
            node = node[part]
        node[last] = value
    places = {"bundle_root": EM.folder, "dataset_dir": EM.make_data(folder / "data")}
    places |= {"output_dir": folder / "out", "model_file": folder / "out" / "model.pt"}
    return {**config, **{key: str(value) for key, value in places.items()}, "run": ["$@train#trainer", "$@evaluation"]}


@pytest.fixture
def build(tmp_path, monkeypatch) -> Callable[[Config], str | None]:
    """Build a configuration; return what a user reads if that fails, and ``None`` if it goes well."""

    def start(config: Config) -> str | None:
        file = tmp_path / "configs" / "train.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(config))
        monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", "--config_file", str(file)])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        try:
            with in_time(30):
                monai.bundle.run(config_file=str(file))
        except Exception as error:  # MONAI raises what it likes, and wraps the rest
            message = explained(error)
            assert message is not None, error
            assert "\n" not in message.strip() and len(message) < 2000
            return message
        return None

    return start


def test_the_good_one_builds(good, build):
    assert build(good) is None


# Where, what stands there, and what the message must say.
BROKEN: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "a target in no module": (("host", "_target_"), "dacal_med.nowhere.Host", "dacal_med.nowhere.Host"),
    "a target that its module lacks": (("host", "_target_"), "dacal_med.engines.Hostess", "engines.Hostess"),
    "a target by a bare name": (("network_def", "_target_"), "UNett", "UNett"),
    "a target that is a path": (("network_def", "_target_"), "/", "problem in /"),
    "no target": (("network_def", "_target_"), "", "configuration: "),
    "a target that is a list": (("network_def", "_target_"), ["UNet"], "configuration: "),
    "a target that is null": (("network_def", "_target_"), None, "configuration: "),
    "an object without target": (("network_def",), {"channels": [4, 8]}, 'wanted an object with "_target_"'),
    "an unknown mode": (("host", "_mode_"), "backwards", "backwards"),
    "an argument that ours does not take": (
        ("train", "trainer", "max_epoch"),
        3,
        "unexpected keyword argument 'max_epoch'",
    ),
    "an argument that MONAI's does not take": (
        ("network_def", "chanels"),
        [4],
        "unexpected keyword argument 'chanels'",
    ),
    "an argument of the host's": (("host", "mask_genrator"), 1, "mask_genrator"),
    "a missing argument": (("load",), {"_target_": "LoadImaged"}, "missing 1 required positional argument: 'keys'"),
    "a reference to nothing": (("seed",), "@sead", "`@sead` is not defined"),
    "a reference into nothing": (("optimizer", "lr"), "@train#trainer#rate", "train::trainer::rate"),
    "a reference in an expression": (("max_epochs",), "$@epochs + 1", "`@epochs` is not defined"),
    "a reference to itself": (("seed",), "@seed", "circular references 'seed'"),
    "two in a circle": (("network",), "$@optimizer", "circular references"),
    "three in a circle": (("class_names",), "$list(@labeller)", "circular references"),
    "a relative reference out of the top": (("seed",), "@########x", "out of the range of config content"),
    "a macro of no file": (("seed",), "%nowhere.json::seed", "nowhere.json"),
    "a macro of no key": (("seed",), "%sead", "sead"),
    "an empty expression": (("seed",), "$", "configuration: "),
    "half an expression": (("seed",), "$(1 +", "SyntaxError"),
    "an unknown name": (("seed",), "$sead", "name 'sead' is not defined"),
    "an import of nothing": (("imports", 0), "$import nowhere_at_all", "name 'os' is not defined"),
    "a statement": (("seed",), "$x = 1", "SyntaxError"),
    "a division by zero": (("seed",), "$1 // 0", "ZeroDivisionError"),
    "a zero byte": (("seed",), "$1\0", "configuration: "),
    "parentheses without end": (("seed",), "$" + "(" * 5000, "configuration: "),
    "text where a number is reckoned with": (("max_epochs",), "$'ten' * 0.5", "TypeError"),
    "a number as text": (("max_epochs",), "10", "max_epochs: found '10', wanted a whole number from 1"),
    "half a batch": (("batch_size",), 1.5, "batch_size: found 1.5, wanted a whole number from 1"),
    "no batch": (("batch_size",), 0, "batch_size: found 0, wanted a whole number from 1"),
    "true for a number": (("epoch_length",), True, "epoch_length: found True"),
    "an empty window": (("roi_size",), [], "roi_size: found []"),
    "a window of 0": (("roi_size",), [16, 0], "roi_size: found [16, 0]"),
    "an unknown device": (("device",), "toaster", "device: found 'toaster', wanted a device"),
    "a seed below 0": (("seed",), -1, "seed: found -1"),
    "a number for a path": (("output_dir",), 7, "output_dir: found 7, wanted a path"),
    "a share as text": (("held_out_share",), "a fifth", "held_out_share: found 'a fifth', wanted a number"),
    "nan": (("learning_rate",), float("nan"), "learning_rate: found nan"),
    "yes": (("amp",), "yes", "amp: found 'yes', wanted true or false (True or False"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_place_is_told(what, good, build):
    place, value, said = BROKEN[what]
    config = json.loads(json.dumps(good))
    node = config
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    message = build(config)
    assert message is not None
    assert said in message


def test_what_depends_on_it_is_not_blamed_for_a_circle(good, build):
    config = {**good, "a": "@b", "b": {"c": "$@a + 1"}, "run": ["$@a"]}
    assert "circular references" in build(config)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(data=st.data(), value=st.sampled_from(list(STRANGE)))
def test_anything_in_any_place_builds_or_is_told(data, value, good, build):
    place = data.draw(st.sampled_from([place for place in places(good) if place and place[0] != "run"]))
    build(replaced(good, place, STRANGE[value]))


# YAML takes a little of what is no JSON; what comes of it is no configuration of ours all the same.
FILES = [(what, ending) for what in TEXTS for ending in ("json", "yaml")]


@pytest.mark.parametrize(("what", "ending"), FILES)
def test_a_file_that_is_no_configuration(what, ending, tmp_path, monkeypatch):
    file = tmp_path / f"train.{ending}"
    file.write_bytes(TEXTS[what])
    try:
        with in_time():
            assert isinstance(bundle.read_config(file), dict)
    except InputError as error:
        message = str(error)
        assert str(file) in message and "\n" not in message and len(message) < 2000
    else:
        # MONAI warns of a key that stands twice, and takes the last.
        assert what == "a key twice" or (ending == "yaml" and what in ("half", "a comment", "Python", "two documents"))


@pytest.mark.parametrize("ending", ["json", "yaml", "toml"])
@pytest.mark.parametrize("what", ["half", "a list", "zeros", "text"])
def test_every_command_tells_it_in_one_line(what, ending, tmp_path, capsys):
    (tmp_path / "configs").mkdir()
    file = tmp_path / "configs" / f"train.{ending}"
    file.write_bytes(TEXTS[what] if what != "half" else TEXTS[what] + b"[")
    weights = tmp_path / "model.pt"
    weights.write_bytes(b"")
    before, out = contents(tmp_path), str(tmp_path / "out")
    given = ["--config_file", str(file), "--out", out]
    reference = ["--model_file", str(weights), "--dataset_dir", str(tmp_path), "--seed", "0"]
    for words in (["compare", *given], ["trust-reference", *given, *reference]):
        assert main(words) == 2
        told = capsys.readouterr().err.strip()
        assert told.startswith("dacal_med: ") and len(told.splitlines()) == 1
        assert str(file) in told
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_epoch", "3"], "found no key 'max_epoch'; did you mean 'max_epochs'"),
        (["--max_epochs", "three"], "max_epochs: found 'three', wanted a whole number from 1"),
        (["--max_epochs", "[1"], "max_epochs: found '[1'"),
        (["--network_def#channels#0#0", "3"], "found no key"),
        (["--max_epochs"], "found --max_epochs without a value"),
        (["max_epochs", "3"], "found 'max_epochs', wanted --key value"),
        (["--background", "None"], "wanted --background '$None'"),
        (["--dataset_dir", "$1 // 0"], "ZeroDivisionError"),
        (["--datalist", "@nowhere"], "`@nowhere` is not defined"),
    ],
)
def test_overrides_of_a_command(words, said, good, tmp_path, capsys):
    file = tmp_path / "configs" / "train.json"
    file.parent.mkdir()
    file.write_text(json.dumps(good))
    assert main(["compare", "--config_file", str(file), "--out", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_merging_into_what_is_no_object_is_told(tmp_path):
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    first.write_text('{"a": 3}')
    second.write_text('{"a#b": 4}')
    with pytest.raises(InputError, match=r"a\.json, .*b\.json: cannot be merged"):
        bundle.read_config([first, second])
    second.write_text('{"+a": [4]}')
    with pytest.raises(InputError, match="cannot be merged"):
        bundle.read_config([first, second])
    with pytest.raises(InputError, match=r"found no file .*c\.json"):
        bundle.read_config([first, Path(tmp_path / "c.json")])


def test_an_error_inside_what_an_expression_calls_is_no_problem_of_the_configuration(good, build):
    with pytest.raises(AssertionError, match="Failed to evaluate"):
        build({**good, "run": ["$dacal_med.core.scores.dice(3)"]})
