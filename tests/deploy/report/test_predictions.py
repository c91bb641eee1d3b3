# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading an output folder: what is shown of names, and what is refused."""

from __future__ import annotations

import json

import pytest

from dacal_med.deploy.report.predictions import Classes, anonymous, classes_of, read_predictions
from dacal_med.io.errors import InputError
from tests.deploy.report.builders import site_folder


def test_cases_are_read_in_the_order_of_their_names(tmp_path):
    cases = read_predictions(site_folder(tmp_path))
    assert [case.shown for case in cases] == ["case_0001", "case_0002", "case_0003", "case_0099"]
    assert [case.ok for case in cases] == [True, True, True, False]
    assert classes_of(cases) == Classes(("background", "organ"), 0)
    assert classes_of(cases).structures == {"organ": 1}
    assert classes_of(cases[3:]).structures == {}


def test_other_names_than_numbers_are_hidden_unless_asked_for(tmp_path):
    out = site_folder(tmp_path, [0.9], failed=False, case="Doe-Jane", warnings=["Doe-Jane: odd"])
    (hidden,), (shown,) = read_predictions(out), read_predictions(out, identify=True)
    assert (hidden.shown, hidden.content["warnings"]) == ("case 1", ["(name): odd"])
    assert (shown.shown, shown.content["warnings"]) == ("Doe-Jane", ["Doe-Jane: odd"])


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("series 1.2.840.113619.2.55.3: no", "series (UID): no"),
        ("/data/Doe Jane/1.dcm: no", "(path) Jane/1.dcm: no"),
        ("cannot read /data/doe/1.dcm", "cannot read (path)"),
        (r"C:\data\doe\1.dcm is odd", "(path) is odd"),
        ("found 2.5 mm and 3/4 of the slices", "found 2.5 mm and 3/4 of the slices"),
    ],
)
def test_uids_and_paths_are_taken_out_of_messages(message, shown):
    assert anonymous(message) == shown


def test_a_file_outside_the_folder_is_not_looked_for(tmp_path):
    out = site_folder(
        tmp_path, [0.9], failed=False, outputs={"segmentation": "../../secret.nii.gz", "confidence": None}
    )
    (case,) = read_predictions(out)
    assert case.file("segmentation") == out / "secret.nii.gz"
    assert case.file("confidence") is None


def test_no_folder_and_no_case_are_told(tmp_path):
    with pytest.raises(InputError, match="found no folder"):
        read_predictions(tmp_path / "nowhere")
    with pytest.raises(InputError, match="found no case"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("[]", "found no case, status"),
        ('{"case": "case_0001"}', "found no status"),
    ],
)
def test_a_file_that_is_no_case_is_named(tmp_path, content, said):
    (tmp_path / "odd.json").write_text(content)
    with pytest.raises(InputError, match=rf"odd\.json: {said}"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("warnings",), -1.5, "found -1.5 for warnings, wanted a list of text or null"),
        (("status",), ["ok"], r"found \['ok'\] for status"),
        (("model", "version"), 3, "found 3 for model#version, wanted text"),
        (("input", "shape"), 3, "found 3 for input#shape"),
        (("trust", "classes"), [], r"found \[\] for trust#classes, wanted an object"),
        (
            ("trust", "classes", "organ", "expected_dice"),
            float("nan"),
            "found nan for trust#classes#organ#expected_dice",
        ),
        (("trust", "confidence_histogram", "foreground"), [1], r"found \[1\] for .*foreground, wanted \d+ counts"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path, place, value, said):
    out = site_folder(tmp_path, [0.9], failed=False)
    content = inner = json.loads((out / "case_0001.json").read_text())
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (out / "case_0001.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"case_0001\.json: {said}"):
        read_predictions(out)
    del inner[place[-1]]
    (out / "case_0001.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"case_0001\.json: found (nothing for|no) .*" + place[-1]):
        read_predictions(out)


def test_warnings_may_be_null(tmp_path):
    out = site_folder(tmp_path, [0.9], failed=False, warnings=None)
    assert [case.content["warnings"] for case in read_predictions(out, identify=True)] == [[]]


def test_a_good_case_without_trust_numbers_is_refused(tmp_path):
    with pytest.raises(InputError, match="found None for trust, wanted trust numbers"):
        read_predictions(site_folder(tmp_path, [0.9], trust=None))


def test_cases_of_different_classes_are_refused(tmp_path):
    out = site_folder(tmp_path)
    content = json.loads((out / "case_0002.json").read_text())
    content["trust"]["classes"] = {"tumour": content["trust"]["classes"]["organ"]}
    content["trust"]["class_names"] = ["background", "tumour"]
    (out / "case_0002.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="wanted one model"):
        classes_of(read_predictions(out))


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": None},
        {"class_names": ["organ"]},
        {"class_names": ["organ", "background"]},
        {"background": None},
        {"background": 2},
        {"background": "background"},
    ],
)
def test_trust_numbers_of_other_classes_than_named_are_refused(tmp_path, changes):
    out = site_folder(tmp_path, [0.9], failed=False)
    content = json.loads((out / "case_0001.json").read_text())
    content["trust"].update(changes)
    (out / "case_0001.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"case_0001\.json: found trust numbers with the class_names"):
        read_predictions(out)
