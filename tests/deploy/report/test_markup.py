# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Markup: whatever text is put in comes out as text."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacal_med.deploy.report.markup import bar, join, table, tag

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]))


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.texts.append(data)


def read(markup: str) -> Reader:
    reader = Reader()
    reader.feed(markup)
    reader.close()
    return reader


@given(TEXT, TEXT)
def test_text_and_attributes_come_back_as_they_were(text, value):
    reader = read(tag("p", text, title=value))
    assert reader.tags == ["p"]
    assert "".join(reader.texts) == text
    assert reader.attributes == [("title", value)]


def test_markup_inside_markup_is_kept_once():
    assert tag("p", tag("b", "1 < 2")) == "<p><b>1 &lt; 2</b></p>"
    assert join(["a&b", tag("br")]) == "a&amp;b<br>"


def test_names_of_attributes():
    assert tag("td", "x", class_="a", aria_label="b", id=None) == '<td class="a" aria-label="b">x</td>'


def test_the_first_cell_of_a_row_heads_it():
    reader = read(table("What", ["A", "B"], [["x", "y"], [tag("td", "z"), "w"]]))
    assert reader.tags == [
        "div",
        "table",
        "caption",
        "thead",
        *["tr", "th", "th"],
        "tbody",
        *["tr", "th", "td"],
        *["tr", "td", "td"],
    ]
    assert ("scope", "row") in reader.attributes


@pytest.mark.parametrize("true", [None, 0.5])
def test_the_drawing_says_its_numbers_in_words(true):
    markup = bar(0.2, 0.6, 0.8, true, "expected 0.6 & more")
    assert 'aria-label="expected 0.6 &amp; more"' in markup
    assert ("truth" in markup) == (true is not None)
    assert bar(None, None, None, None, "") == "—"
