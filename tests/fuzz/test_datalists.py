# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Malformed datalists, labels and shapes of a data set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from dacal_med.bundle import read_config
from dacal_med.cli import main
from dacal_med.data import check_data, load_datalist
from dacal_med.data.datalist import load_cases
from dacal_med.handlers.sums import load_sums
from dacal_med.handlers.weights import load_weights
from dacal_med.networks.weights import load_weights as load_encoder
from tests.fuzz.images import AFFINE, SHAPE, good_array
from tests.fuzz.outcomes import attempt

GOOD = {
    "name": "a set",
    "labels": {"0": "background", "1": "organ", "255": "ignore"},
    "source": [{"image": "a.nii", "label": "b.nii", "group": "x", "patient": "p"}],
    "target_train": [{"image": "c.nii"}],
    "target_val": [{"image": "d.nii", "label": "b.nii"}],
    "spacing_mm": [1.5, 2.0, 3.0],
    "modality": {"source": "CT", "target": "MR"},
}
STRANGE: dict[str, Any] = {
    "null": None,
    "true": True,
    "a number": 3,
    "a huge number": 10**30,
    "a number below 0": -1.5,
    "no number": math.nan,
    "infinity": math.inf,
    "no text": "",
    "text": "text",
    "a long text": "x" * 5000,
    "a zero byte": "a\0b",
    "half a character": "\ud800",
    "somebody's home": "~nobody-of-this-name/a.nii",
    "the root": "/",
    "up": "../../../../../../../../etc/passwd",
    "a list": [],
    "a list of lists": [[[]]],
    "a list of nothing": [None],
    "an object": {},
    "an object of objects": {"image": {"image": {}}, "label": []},
}
TEXTS: dict[str, bytes] = {
    "nothing": b"",
    "white space": b"  \n\t ",
    "half": json.dumps(GOOD).encode()[:90],
    "two documents": json.dumps(GOOD).encode() * 2,
    "a comment": b"// a comment\n" + json.dumps(GOOD).encode(),
    "Python": str(GOOD).encode(),
    "UTF-16": json.dumps(GOOD).encode("utf-16"),
    "Latin-1": json.dumps({"name": "\u00e9"}, ensure_ascii=False).encode("latin-1"),
    "zeros": bytes(500),
    "a long number": b'{"labels": ' + b"9" * 6000 + b"}",
    "deep": b"[" * 100_000,
    "deep and whole": b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": b"[1, 2]",
    "text": b'"labels"',
    "a key twice": b'{"labels": {"0": "a", "1": "b"}, "labels": 3, "source": [], "target_train": []}',
    "a NIfTI file": bytes(348) + b"n+1\0",
}
LABELS: dict[str, Any] = {
    "a fraction as key": {"0": "a", "1.5": "b"},
    "a word as key": {"background": 0, "organ": 1},
    "a long key": {"0": "a", "9" * 5000: "b"},
    "a key beyond 64 bits": {"0": "a", str(2**70): "b"},
    "a key below all": {"0": "a", str(-(2**70)): "b"},
    "a key twice": {"0": "a", " 0": "b", "1": "c"},
    "a name twice": {"0": "a", "1": "a"},
    "one class": {"0": "a"},
    "all ignored": {"0": "ignore", "1": "void"},
    "names that are numbers": {"0": 0, "1": 1},
    "names of white space": {"0": " ", "1": "b"},
    "a list": ["a", "b"],
    "other digits": {"0": "a", "\u0663": "b"},
    "values below 0": {"-1": "a", "-7": "b"},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shift in (("a", 0), ("c", 1), ("d", 2)):
        nib.save(nib.Nifti1Image(good_array() + np.int16(shift), AFFINE), tmp_path / f"{name}.nii")
    nib.save(nib.Nifti1Image((good_array() > 300).astype(np.uint8), AFFINE), tmp_path / "b.nii")
    return tmp_path


def check(folder: Path) -> Any:
    """Everything that is asked of a datalist before a training starts."""
    datalist = load_datalist(folder)
    datalist.working_spacing(3)
    return check_data(datalist, 3, 1, progress=False)


def named(folder: Path, value: Any) -> list[str]:
    """What a message must say one of: the datalist, a file of it, or, at its beginning, the file that stands there."""
    files = ["datalist.json: ", *(str(folder / name) for name in ("a.nii", "b.nii", "c.nii", "d.nii"))]
    return [*files, *([f"{folder / value}: "] if isinstance(value, str) and len(value) < 200 else [])]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The document with something else in one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


PLACES = places(GOOD)


@pytest.mark.parametrize("what", STRANGE)
def test_anything_in_any_place_of_a_datalist(what, folder):
    passed = 0
    for place in PLACES:
        (folder / "datalist.json").write_text(json.dumps(replaced(GOOD, place, STRANGE[what])))
        summary = attempt(lambda: check(folder), *named(folder, STRANGE[what]))
        passed += summary is not None and summary.images == 3
    assert passed < len(PLACES)  # something was malformed


@pytest.mark.parametrize("what", TEXTS)
@pytest.mark.parametrize("load", [load_datalist, load_cases])
def test_a_file_that_is_no_datalist(what, load, folder):
    (folder / "datalist.json").write_bytes(TEXTS[what])
    assert attempt(lambda: load(folder), "datalist.json") is None


@pytest.mark.parametrize("what", LABELS)
def test_names_of_labels(what, folder):
    (folder / "datalist.json").write_text(json.dumps({**GOOD, "labels": LABELS[what]}))
    assert attempt(lambda: check(folder), "datalist.json", "b.nii") is None or what == "other digits"


VALUES: dict[str, np.ndarray] = {
    "a class too many": np.where(good_array() > 300, 2, 0).astype(np.uint8),
    "a class below 0": np.where(good_array() > 300, -1, 0).astype(np.int16),
    "a fraction": np.where(good_array() > 300, 0.5, 0).astype(np.float32),
    "nearly a class": np.where(good_array() > 300, 1.0001, 0).astype(np.float32),
    "no number": np.where(good_array() > 300, np.nan, 0).astype(np.float32),
    "infinity": np.where(good_array() > 300, np.inf, 0).astype(np.float32),
    "a huge value": np.where(good_array() > 300, 2**40, 0).astype(np.int64),
    "a slice less": np.zeros((9, 8, 6), np.uint8),
    "turned": np.zeros((7, 8, 9), np.uint8),
    "two axes": np.zeros((9, 8), np.uint8),
    "one axis": np.zeros(9, np.uint8),
    "four axes": np.zeros((9, 8, 7, 2), np.uint8),
    "a fourth axis of one": np.zeros((9, 8, 7, 1), np.uint8),
    "no voxel": np.zeros((9, 0, 7), np.uint8),
    "one voxel": np.zeros((1, 1, 1), np.uint8),
    "complex": np.zeros((9, 8, 7), np.complex64),
}


@pytest.mark.parametrize("what", VALUES)
@pytest.mark.parametrize("role", ["a", "b", "c"])
def test_values_and_shapes(what, role, folder):
    (folder / "datalist.json").write_text(json.dumps(GOOD))
    nib.save(nib.Nifti1Image(VALUES[what], AFFINE, dtype=VALUES[what].dtype), folder / f"{role}.nii")
    summary = attempt(lambda: check(folder), f"{role}.nii", "b.nii")
    if summary is not None:
        assert VALUES[what].squeeze().shape == SHAPE or role == "c"
        assert VALUES[what].ndim == 3 or what == "a fourth axis of one"
        assert VALUES[what].dtype.kind != "c"
        assert role != "b" or what == "a fourth axis of one"
    else:
        assert role == "b" or what not in ("a class too many", "a class below 0", "a fraction", "nearly a class")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    place=st.sampled_from(PLACES),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
)
@example(place=("source", 0, "image"), value=".")
def test_any_json_in_any_place(place, value, folder):
    (folder / "datalist.json").write_text(json.dumps(replaced(GOOD, place, value)))
    attempt(lambda: check(folder), *named(folder, value))


@pytest.mark.parametrize("place", ["x" * 5000, "~nobody-of-this-name", "a\0b", "\ud800"])
@pytest.mark.parametrize("load", [load_datalist, load_cases, read_config, load_sums, load_weights, load_encoder])
def test_a_path_that_no_file_can_have(place, load):
    arguments = (place,) if load in (load_datalist, load_cases, read_config, load_sums) else (nn.Identity(), place)
    assert attempt(lambda: load(*arguments), repr(place)[1:50], "~nobody-of-this-name") is None


@pytest.mark.parametrize("place", ["x" * 5000, "~nobody-of-this-name"])
def test_the_command_line_tells_of_such_a_path(place, capsys, tmp_path):
    bundle = str(Path(__file__).resolve().parents[2] / "bundles" / "dacal_ct2mr")
    out = str(tmp_path / "out")
    for words in (
        ["benchmark", bundle, "--data-root", place, "--out", out],
        ["benchmark", place, "--data-root", str(tmp_path), "--out", out],
        ["compare", "--config_file", place, "--out", out],
        ["export", "--bundle", place, "--out", out],
        ["calibrate", "--site", place, "--dataset_dir", str(tmp_path), "--out", out],
    ):
        assert main(words) == 2
        told = capsys.readouterr().err.strip()
        assert told.startswith("dacal_med: ") and place[:20] in told and len(told) < 1000, told


def test_the_command_line_tells_it_in_one_line(folder, capsys, tmp_path):
    (folder / "datalist.json").write_text('{"labels": ')
    bundle = str(Path(__file__).resolve().parents[2] / "bundles" / "dacal_ct2mr")
    out = tmp_path / "out"
    assert main(["benchmark", bundle, "--data-root", str(folder), "--out", str(out)]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("dacal_med: ")
    assert "datalist.json: not valid JSON" in told
    assert not out.exists()
