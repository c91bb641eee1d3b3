# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Panels of cases: the first few, and large ones not at every pixel."""

from __future__ import annotations

import pytest
import torch

from dacal_med.engines import CalibrationEvaluator
from dacal_med.handlers import cases
from dacal_med.handlers.cases import CasePanels
from tests.engines.builders import blobs, tiny_network

NAMES = ["background", "one", "two"]


@pytest.fixture
def drawn(monkeypatch):
    """What was drawn, by name, in the order of the cases."""
    seen = []
    monkeypatch.setattr(cases, "image_panel", lambda class_names, background, **slices: seen.append(slices))
    return seen


@pytest.mark.parametrize("dims", [2, 3])
def test_the_first_cases_are_drawn_as_they_are(drawn, dims):
    data = blobs(3, dims, 1.0, 3)
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(dims), NAMES)
    panels = CasePanels(evaluator, 2)
    evaluator.run()
    assert [index for index, _ in panels.take()] == [0, 1]
    assert panels.take() == []
    assert all(part.shape == (16, 16) for slices in drawn for part in slices.values())
    if dims == 2:
        assert torch.equal(drawn[1]["image"], data[1]["image"][0])


def test_large_images_are_drawn_smaller(drawn, monkeypatch):
    monkeypatch.setattr(cases, "MAX_SIDE", 10)
    data = blobs(1, 2, 1.0, 3, size=24)
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(2), NAMES)
    CasePanels(evaluator, 1)
    evaluator.run()
    assert torch.equal(drawn[0]["image"], data[0]["image"][0, ::3, ::3])
    assert {tuple(part.shape) for part in drawn[0].values()} == {(8, 8)}
