# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med report`` on an output folder of which one case's JSON is malformed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dacal_med.cli import main
from dacal_med.deploy.report.command import make_report
from dacal_med.deploy.report.page import page
from dacal_med.deploy.runtime.trust_histograms import BINS
from tests.deploy.report.builders import site_folder
from tests.fuzz.outcomes import attempt, in_time
from tests.fuzz.test_datalists import STRANGE, TEXTS, places, replaced

CASE = "case_0001.json"
_ENOUGH = 2  # entries of a list: the others are of the same kind


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tests = {"intensity": {"distance": 0.2, "threshold": 0.1, "p_value": 0.1, "unusual": True}}
    out = site_folder(tmp_path_factory.mktemp("site"), [0.9, 0.6])
    for path in out.glob("case_000*.json"):
        content = json.loads(path.read_text())
        content["trust"]["out_of_distribution"] = {"assessed": True, "unusual": True, "tests": tests}
        # Nothing to draw: figures take longer than all the rest of a page.
        content["trust"]["confidence_histogram"]["foreground"] = [0] * BINS
        path.write_text(json.dumps({**content, "warnings": ["odd"]}))
    return out


@pytest.fixture(scope="module")
def good(folder: Path) -> str:
    """The case as it was written; depends on it whatever changes the file."""
    return (folder / CASE).read_text()


def few(content: Any) -> list[tuple[Any, ...]]:
    """Where something stands in a document, of lists in the first entries alone."""
    return [place for place in places(content) if not any(isinstance(part, int) and part >= _ENOUGH for part in place)]


def report(folder: Path) -> str | None:
    """The page, or None if the case was refused by its name, or as that of another model than the others."""
    return attempt(lambda: page(make_report(folder, overlays=0, identify=True)), CASE, "wanted one model")


@pytest.mark.parametrize("what", STRANGE)
def test_anything_in_any_place_of_a_case(what, folder, good):
    content = json.loads(good)
    passed = 0
    for place in few(content):
        (folder / CASE).write_text(json.dumps(replaced(content, place, STRANGE[what])))
        passed += report(folder) is not None
    assert passed < len(few(content))


@pytest.mark.parametrize("what", TEXTS)
def test_a_file_that_is_no_case(what, folder, good):
    (folder / CASE).write_bytes(TEXTS[what])
    assert report(folder) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    data=st.data(),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_any_json_in_any_place(data, value, folder, good):
    content = json.loads(good)
    place = data.draw(st.sampled_from(few(content)))
    (folder / CASE).write_text(json.dumps(replaced(content, place, value)))
    report(folder)


def test_the_command_line_tells_it_in_one_line(folder, good, capsys, tmp_path):
    (folder / CASE).write_text("[" * 100_000)
    with in_time():
        assert main(["report", "--predictions", str(folder), "--out", str(tmp_path / "report.html")]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("dacal_med: ") and CASE in told and len(told.splitlines()) == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("option", ["--predictions", "--labels", "--images"])
@pytest.mark.parametrize("place", ["x" * 5000, "nowhere/at/all"])
def test_a_place_that_cannot_be(option, place, folder, good, capsys, tmp_path):
    (folder / CASE).write_text(good)
    words = {"--predictions": str(folder), "--out": str(tmp_path / "report.html"), option: place}
    assert main(["report", *(word for pair in words.items() for word in pair)]) == 2
    told = capsys.readouterr().err
    assert "dacal_med: " in told and "Traceback" not in told and len(told) < 1000
