# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Killed and resumed: what counts as the same, and the experiment with three kills."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from scripts.kill_and_resume import Kill, data_order, report, same
from tests.conftest import ROOT


def test_sameness_is_bit_by_bit():
    value = {"a": [1, 2.0, float("nan")], "b": torch.tensor([0.0, float("nan")])}
    assert same(value, {"a": [1, 2.0, float("nan")], "b": torch.tensor([0.0, float("nan")])})
    assert not same(0.0, -0.0)
    assert not same(torch.tensor(0.0), torch.tensor(-0.0))
    assert not same(torch.tensor(1.0), torch.tensor(1.0, dtype=torch.float64))
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert not same([1], [1, 2])
    assert not same(1, 1.0)


def test_repeated_iterations_must_see_the_same_data(tmp_path):
    a, b = "a" * 64, "b" * 64
    (tmp_path / "data.txt").write_text(f"1 {a}\n2 {b}\n2 {b}\n3 {b[:9]}")
    assert data_order(tmp_path) == {1: a, 2: b}
    (tmp_path / "data.txt").write_text(f"1 {a}\n1 {b}\n")
    with pytest.raises(RuntimeError, match="iteration 1 saw other data"):
        data_order(tmp_path)


def test_the_page_says_what_differs():
    page = report(1.0, [Kill(0.5, 3, 0, 2, True), Kill(0.5, 3, 1, 2, False)], [Kill(0.1, 1, 0, 0, None)], False)
    assert "**1 of 2** runs" in page
    assert "DIFFERENTLY" in page


@pytest.mark.slow
def test_three_kills(tmp_path, subprocess_environment):
    line = [sys.executable, "-m", "scripts.kill_and_resume", "--kills", "3", "--out", str(tmp_path / "page.md")]
    done = subprocess.run(line, cwd=ROOT, env=subprocess_environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, json.dumps([done.stdout[-2000:], done.stderr[-2000:]])
    assert "**3 of 3** runs" in (tmp_path / "page.md").read_text()
