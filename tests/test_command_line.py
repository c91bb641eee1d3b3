# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Options as Fire assigns them, and texts that Fire and MONAI leave as they are (`tests/bundles/test_odd_paths.py`)."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path
from typing import Any

import fire
import pytest
from monai.bundle import ConfigParser

from dacal_med.command_line import as_typed, check_texts, config_files, literal, options
from dacal_med.deploy.runtime.run import SiteInference
from dacal_med.io.errors import InputError

PROGRAM = os.path.join("lib", "monai", "bundle", "__main__.py")
NAMES = [
    *("a b", "a@b", "a'b", 'a"b', "müller", "脳", "a\\b", " a", "a%b", "a$b", "a*?", "a::b", "-9a", "-x", "~x", "2024"),
    *("study#12", "[study]", "a,b", "study ", "True", "None", "{}", "'q'", unicodedata.normalize("NFD", "müller"), "#"),
    *("@data", "$data", "%data", "\udcff", "line\nbreak", "a@::b", "a@#b", "%a.json#b", "", "import os", "\U0001f9e0#"),
]


def assigned(line: list[str]) -> dict[str, Any]:
    """What Fire itself assigns, values as typed."""
    taken: dict[str, Any] = {}

    @fire.decorators.SetParseFn(str)
    def record(*words: str, **given: str) -> None:
        taken.update(given)

    fire.Fire(record, command=line)
    return taken


@pytest.mark.parametrize(
    "line",
    [
        ["run", "--a", "1", "--b=2", "-c", "x", "--d-e", "y", "--a", "3"],
        ["run", "--a", "--b", "-f", "-5", "--c==", "--long", "", "--last"],
        ["run", "-long", "x y", "--e=", "--f=-x", "--net#a", "1", "--net::b", "2"],
        [],
    ],
)
def test_options_are_assigned_as_by_fire(line):
    assert options(line) == assigned(line)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["", "/data/"])
def test_a_literal_is_read_as_the_path(name, place):
    path = place + name
    text = literal(path)
    (value,) = fire.Fire(
        lambda **given: list(given.values()), command=["--key", text] if text[:1] != "-" else [f"--key={text}"]
    )
    parser = ConfigParser({"output_dir": value, "below": {"_target_": "dict", "folder": value}})
    assert parser.get_parsed_content("output_dir") == path
    assert parser.get_parsed_content("below") == {"folder": path}
    if place:
        assert (text == path) == (not any(mark in name for mark in ("#", "@::")))
    assert literal(Path(path)) == literal(str(Path(path)))


def test_configuration_files_are_those_that_monai_reads(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b,c.json", "[d].json", "e f.json"):
        Path(name).touch()
    assert config_files("a.json") == ["a.json"]
    assert config_files("./b,c.json") == ["./b,c.json"]
    assert config_files("[d].json") == ["[d].json"]
    assert config_files("['a.json', \"e f.json\", 'missing.json']") == ["a.json", "e f.json"]
    assert config_files(["a.json", "e f.json"]) == ["a.json", "e f.json"]
    assert (
        config_files("a.json,a.json") == config_files("[a.json,a.json]") == config_files(None) == []
    )  # nor does MONAI


def test_notes_switches_and_what_is_looked_up_pass():
    check_texts({"_desc_": "see #19", "a": {"_note_": "#1", "b": "$@c#d"}}, {"resume": "True", "spacing": "[1, 2, 3]"})
    check_texts({"output_dir": "study#12"}, {"output_dir": "elsewhere", "weights": "~/a", "x": "%a.json#b", "y": "@#z"})


def test_a_site_takes_what_was_typed(monkeypatch):
    site = SiteInference("nowhere", 2024, ["study"], "m.pt", None, None, None, 3, 1)  # as MONAI gives them
    monkeypatch.setattr(SiteInference, "run", lambda self: {"failed": [], "cases": [], "ok": 0})
    words = ["--dataset_dir", "2024", "--output_dir=[study]", "--model_file", "models/a#b.pt"]
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", *words])
    site.main()
    assert (site.dataset_dir, site.output_dir, site.model_file) == ("2024", Path("[study]"), Path("models/a#b.pt"))


def test_a_path_is_taken_from_the_command_line_of_monai_alone(monkeypatch):
    words = ["--dataset_dir", "study#12", "--output_dir", "$'a' + 'b'", "--bundle_root=~/b"]
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", *words])
    assert as_typed("dataset_dir", "study") == "study#12"
    assert as_typed("output_dir", "ab") == "ab"
    assert as_typed("bundle_root", "~/b") == os.path.expanduser("~/b")
    assert as_typed("model_file", "m.pt") == "m.pt"
    with pytest.raises(InputError, match=r"model_file: found 'm::1\.pt'"):
        as_typed("model_file", "m::1.pt")
    monkeypatch.setattr(sys, "argv", [PROGRAM, "run", "--output_dir", "--dataset_dir", "study"])
    with pytest.raises(InputError, match="--output_dir: found no path after it"):
        as_typed("output_dir", True)
    monkeypatch.setattr(sys, "argv", ["script.py", "--dataset_dir", "mine"])
    assert as_typed("dataset_dir", "theirs") == "theirs"
