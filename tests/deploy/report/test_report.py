# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The page as the command writes it: whole in one file, worst first, nothing unescaped, 2D and 3D."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from dacal_med.cli import main
from dacal_med.deploy.report.figures import confidence_figure, shown_slices, slice_figure
from dacal_med.deploy.report.scans import Scan
from tests.deploy.report.builders import MODEL, site_folder

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that elements close, and collects what matters."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(given)
        self.links += [given[key] for key in ("href", "src", "action", "data") if key in given]
        self.ids += [given["id"]] if "id" in given else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data + "\n"


def report(tmp_path: Path, *words: str) -> tuple[str, Page]:
    file = tmp_path / "report.html"
    assert main(["report", "--predictions", str(tmp_path / "out"), "--out", str(file), *words]) == 0
    html = file.read_text(encoding="utf-8")
    return html, Page(html)


def assert_self_contained(html: str, page: Page) -> None:
    assert all(link.startswith(("#", "data:image/")) for link in page.links)
    without_data = re.sub(r"data:image/[a-z+]+;base64,[A-Za-z0-9+/=]+", "", html)
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<iframe", without_data)
    for link in page.links:
        if link.startswith("data:image/svg+xml;base64,"):
            svg = base64.b64decode(link.partition(",")[2]).decode()
            # Names of XML dialects are no addresses, and the colours of a scale are an image inside.
            assert not re.search(r"<script|href=\"(?!#|data:)|url\((?!#)", svg)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_page_is_whole_with_images_and_labels(tmp_path, dims):
    site_folder(tmp_path, dims=dims)
    html, page = report(tmp_path, "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels"))
    assert_self_contained(html, page)
    # Four figures of confidence, and slices of each case: the largest is not less doubtful than others here.
    assert len(page.images) == 4 + 3
    assert all(image["alt"] for image in page.images)
    assert page.headings[0].startswith("Site report")
    overlays, size, cells = ("Pictures", "area", "pixels") if dims == 2 else ("Slices", "volume", "voxels")
    assert {"Summary", "Failed cases", "Confidence", overlays, "Model and method"} <= set(page.headings)
    assert f"Expected {size}" in page.text and f"low-confidence {cells}" in page.text
    assert ("voxels" in page.text) == (dims == 3)
    assert "Notes" not in page.text  # there are none
    # Truth is the organ moved by one of its six rows.
    assert page.text.count("0.833") >= 3
    assert ("ml" if dims == 3 else "pixels") in page.text
    assert MODEL["sha256"] in page.text and "1.2.3" in page.text


@pytest.mark.parametrize("dims", [2, 3])
def test_it_needs_neither_images_nor_labels(tmp_path, dims):
    site_folder(tmp_path, dims=dims)
    html, page = report(tmp_path)
    assert_self_contained(html, page)
    assert len(page.images) == 1 + 3
    assert "True Dice" not in page.text


@pytest.mark.parametrize(
    ("background", "true"), [(0, {"car": 0.833}), (None, {"road": 0.929, "car": 0.833}), (1, {"road": 0.929})]
)
def test_numbers_of_the_segmentation_are_the_classes_that_the_case_names(tmp_path, background, true):
    """Of 120 pixels 36 are car, in truth moved by one of six rows: 30 in common, and 78 of 84 of the road."""
    site_folder(tmp_path, [0.9], dims=2, failed=False, names=("road", "car"), background=background)
    _, page = report(tmp_path, "--images", str(tmp_path / "images"), "--labels", str(tmp_path / "labels"))
    # Without background the second reliability diagram would be the first again.
    diagrams = [image["alt"] for image in page.images if image["alt"].startswith("Reliability diagram")]
    assert len(diagrams) == (1 if background is None else 2)
    words = page.text.split("\n")
    for name in ("road", "car"):
        assert (name in words) == (name in true)
    for name, value in true.items():
        # The summary's row: structure, found in, expected Dice, lowest, volume, low confidence, true Dice.
        row = words.index(name)
        assert words[row + 1] == "1 of 1"
        assert words[row + 6] == f"{value:.3f}"


@pytest.mark.parametrize(("background", "legend"), [(0, ["car"]), (None, ["road", "car"]), (1, ["road"])])
def test_slices_show_every_structure_and_no_background(background, legend):
    segmentation = np.zeros((6, 8), np.uint8)
    segmentation[2:4, 2:5] = 1
    scan = Scan(segmentation, np.ones((6, 8), np.float32), None, None, (1.0, 1.0))
    figure = slice_figure(scan, -1, ("road", "car"), background)
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == legend
    painted = figure.axes[0].images[-1].get_array()[..., 3] > 0
    wanted = np.ones((8, 6), bool) if background is None else background != segmentation.T
    assert np.array_equal(painted, wanted)


def test_the_lowest_expected_dice_comes_first(tmp_path):
    site_folder(tmp_path, [0.9, 0.6, 0.8, 0.7])
    _, page = report(tmp_path, "--overlays", "4")
    shown = [heading.split(":")[0] for heading in page.headings if heading.startswith("case_")]
    assert shown == ["case_0002", "case_0004", "case_0003", "case_0001"]
    rows = re.findall(r"case_\d{4}", page.text[page.text.index("Dot: expected Dice") :])
    assert rows[:4] == shown


def test_a_case_in_which_nothing_is_found_comes_before_all(tmp_path):
    site_folder(tmp_path, [0.9, 0.4])  # below one half nothing of the organ is predicted, though confidence is stored
    _, page = report(tmp_path, "--overlays", "0")
    rows = re.findall(r"case_\d{4}", page.text[page.text.index("Dot: expected Dice") :])
    assert rows[0] == "case_0002"
    assert "Slices" not in page.headings


def test_only_the_worst_cases_have_slices(tmp_path):
    site_folder(tmp_path, [0.9, 0.6, 0.8])
    _, page = report(tmp_path, "--overlays", "1")
    (heading,) = [heading for heading in page.headings if heading.startswith("case_")]
    # 144 voxels found of which 60 % are expected to be right, and 2 % of the other 576 to be missed.
    assert heading == f"case_0002: expected Dice {2 * 86.4 / (144 + 86.4 + 11.52):.3f}"
    assert "The 2 cases with the highest expected Dice are not shown." in page.text


def test_failed_cases_are_told_and_alone_are_enough(tmp_path):
    site_folder(tmp_path, [])
    html, page = report(tmp_path, "--overlays", "0")
    assert_self_contained(html, page)
    assert "0 of 1" in page.text
    assert "the series: slices are <missing>" in page.text
    assert "&lt;missing&gt;" in html


def test_what_cases_say_is_text_and_not_markup(tmp_path):
    evil = '<script>alert("x")</script>'
    site_folder(tmp_path, [0.9], failed=False, warnings=[evil], model={**MODEL, "name": evil})
    html, page = report(tmp_path, "--overlays", "0")
    assert "<script" not in html
    assert page.text.count(evil) == 3


def test_names_are_hidden_unless_asked_for(tmp_path):
    out = site_folder(tmp_path, [0.9], failed=False, case="Doe-Jane")
    for kind in ("seg", "confidence"):
        (out / f"case_0001_{kind}.nii.gz").rename(out / f"Doe-Jane_{kind}.nii.gz")
    (out / "case_0001.json").rename(out / "Doe-Jane.json")
    content = json.loads((out / "Doe-Jane.json").read_text())
    content["outputs"] = {
        kind: f"Doe-Jane_{short}.nii.gz" for kind, short in (("segmentation", "seg"), ("confidence", "confidence"))
    }
    (out / "Doe-Jane.json").write_text(json.dumps(content))
    hidden, page = report(tmp_path)
    assert_self_contained(hidden, page)
    assert "Doe" not in hidden and "case 1" in hidden
    shown, _ = report(tmp_path, "--identify")
    assert "Doe-Jane" in shown


def test_unusual_images_are_marked(tmp_path):
    out = site_folder(tmp_path, [0.9, 0.8])
    content = json.loads((out / "case_0001.json").read_text())
    test = {"distance": 0.3, "threshold": 0.1, "p_value": 0.04, "unusual": True}
    content["trust"]["out_of_distribution"] = {"assessed": True, "unusual": True, "tests": {"intensity": test}}
    content["warnings"] = ["out of distribution: intensities"]
    (out / "case_0001.json").write_text(json.dumps(content))
    html, page = report(tmp_path, "--overlays", "0")
    assert_self_contained(html, page)
    assert "unusual intensity" in page.text
    assert "Notes" in page.text
    assert "Warnings" in page.headings
    assert "very wide" not in page.text


def test_it_says_that_nothing_was_compared(tmp_path):
    site_folder(tmp_path)
    _, page = report(tmp_path, "--overlays", "0")
    assert "not assessed" in page.text
    assert "The model came without a trust reference" in page.text


def test_it_prints(tmp_path):
    site_folder(tmp_path)
    html, _ = report(tmp_path, "--overlays", "0")
    assert "@media print" in html and "break-inside: avoid" in html


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--images", "nowhere"], "found no such file or folder"),
        (["--images", "labels"], None),
        (["--labels", "nowhere"], "--labels: found no label"),
        (["--labels", "labels"], "found no label of any case"),
    ],
)
def test_places_that_do_not_fit_are_told(tmp_path, capsys, words, said):
    site_folder(tmp_path)
    words = [words[0], str(tmp_path / words[1])]
    status = main(["report", "--predictions", str(tmp_path / "out"), "--out", str(tmp_path / "r.html"), *words])
    assert status == (0 if said is None else 2)
    assert said is None or said in capsys.readouterr().err
    assert (tmp_path / "r.html").exists() == (said is None)


def test_an_output_that_cannot_be_written_is_told(tmp_path, capsys):
    site_folder(tmp_path)
    (tmp_path / "file").write_text("")
    words = ["report", "--predictions", str(tmp_path / "out"), "--out", str(tmp_path / "file" / "r.html")]
    assert main(words) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_slices_shown_are_the_largest_and_the_most_doubtful():
    segmentation = np.zeros((6, 6, 5), np.uint8)
    segmentation[1:5, 1:5, 1] = 1
    segmentation[2:4, 2:4, 3] = 1
    confidence = np.where(segmentation > 0, 0.9, 0.99).astype(np.float32)
    scan = Scan(segmentation, confidence, None, None, (1.0, 1.0, 1.0))
    assert shown_slices(scan) == {"largest": 1}
    confidence[2, 2, 3] = 0.6
    assert shown_slices(scan) == {"largest": 1, "most doubtful": 3}
    assert shown_slices(scan, background=1) == {"largest": 0, "most doubtful": 3}


def test_pixels_are_drawn_square():
    shape = (4, 12)
    scan = Scan(np.ones(shape, np.uint8), np.ones(shape, np.float32), None, None, (3.0, 1.0))
    figure = slice_figure(scan, -1, ("background", "organ"))
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (12, 12)


def test_a_histogram_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="found no voxel"):
        confidence_figure({"a": [0, 0]}, "")
    assert torch.tensor(confidence_figure({"a": [0, 1, 3]}, "").axes[0].get_xlim()).tolist() == pytest.approx(
        [0.0, 1.0]
    )
