# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the metrics on a tiny volume: what it prints, and that both sides measure one thing. No times."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from dacal_med.core.scores import mean_dice, mean_iou
from dacal_med.core.statistics import SegmentationStatistics
from scripts import benchmark_metrics as benchmark
from tests.processes import children_here


def test_prints_a_line_for_each_variant_and_their_ratio(monkeypatch, capfd):
    children_here(monkeypatch, benchmark)
    line = ["benchmark_metrics", "--size", "12", "8", "6", "--classes", "3", "--rounds", "1", "--cases", "2"]
    monkeypatch.setattr(sys, "argv", [*line, "--voxels", "0"])
    assert benchmark.main() == 0
    *rows, ratio = (json.loads(text) for text in capfd.readouterr().out.splitlines())
    assert [(row["variant"], row["cases"], row["rounds"]) for row in rows] == [("one pass", 2, 1), ("MONAI", 2, 1)]
    for row in rows:
        assert row["seconds_per_case"] > 0 and row["cpu_seconds_per_case"] > 0
    assert ratio["cases"] == 2 and set(ratio["MONAI / one pass"]) == {"seconds", "cpu_seconds"}


def test_both_sides_agree_on_what_both_measure():
    """One case: the Dice and IoU of the classes that it has are the same; a mean over classes that are all there."""
    case = benchmark.make_case((14, 8, 6), 2, 0)
    (mine, scores), (yours, others) = (f(1, lambda _: case) for f in (benchmark.ours, benchmark.theirs))
    assert mine.seconds > 0 and yours.seconds > 0
    every = SegmentationStatistics(2, background=None)  # ours leaves the background out of the mean, MONAI's does not
    every.update(*case)
    assert mean_dice(every) == pytest.approx(others["dice"], rel=1e-6)
    assert mean_iou(every) == pytest.approx(others["miou"], rel=1e-6)
    assert scores["miou"] == pytest.approx(
        float(every.confusion[1, 1] / (every.confusion.sum() - every.confusion[0, 0]))
    )


def test_a_case_is_reproducible_and_sums_to_one():
    (p, y), (q, z) = (benchmark.make_case((6, 4, 4), 3, 1) for _ in range(2))
    assert torch.equal(p, q) and torch.equal(y, z)
    assert p.shape == (1, 3, 6, 4, 4) and y.unique().tolist() == [0, 1, 2]
    assert float((p.sum(1) - 1).abs().max()) < 1e-6
    assert not torch.equal(p, benchmark.make_case((6, 4, 4), 3, 2)[0])


def test_counting_many_voxels_of_one_bin():
    assert benchmark.count_many(1 << 22) == {"voxels": 1 << 22, "one pass": 1 << 22, "MONAI": 1 << 22}
