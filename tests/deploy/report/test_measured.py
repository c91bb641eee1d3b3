# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What labels say: against the statistics that evaluation uses, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dacal_med.core.scores import dice, reliability_table
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.deploy.report.measured import measure, pooled, reliability_of
from dacal_med.deploy.report.scans import Scan


def scans(dims: int, background: int | None) -> tuple[Scan, SegmentationStatistics]:
    size = (9, 8, 7)[:dims]
    probabilities = torch.randn(1, 3, *size).mul(2).softmax(dim=1)
    label = torch.randint(0, 3, (1, 1, *size))
    label[0, 0, 0] = 255
    statistics = SegmentationStatistics(3, background=background, boundary_width=0)
    statistics.update(probabilities, label)
    confidence, prediction = probabilities[0].max(dim=0)
    arrays = prediction.numpy().astype(np.uint8), confidence.numpy(), None, label[0, 0].numpy().astype(np.uint8)
    return Scan(*arrays, (1.0,) * dims), statistics


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("background", [0, None])
def test_it_agrees_with_the_evaluation(dims, background):
    scan, statistics = scans(dims, background)
    found = measure(scan, {"a": 0, "b": 1, "c": 2}, background)
    assert list(found.dice.values()) == pytest.approx(dice(statistics).tolist())
    for table, region in ((found.reliability, "all"), (found.foreground, "foreground")):
        expected = reliability_table(statistics, 15, region)
        for name in ("count", "accuracy", "confidence"):
            assert np.allclose(getattr(table, name), getattr(expected, name), equal_nan=True), (region, name)


def test_several_cases_pool_to_one():
    confidence, correct = np.random.default_rng(0).random(500).astype(np.float32), np.arange(500) % 3 == 0
    whole = reliability_of(confidence, correct)
    parts = pooled([reliability_of(confidence[k::2], correct[k::2]) for k in range(2)])
    for first, second in zip(whole, parts, strict=True):
        assert np.allclose(first, second, equal_nan=True)


def test_without_label_nothing_is_measured():
    scan, _ = scans(2, 0)
    assert measure(Scan(scan.segmentation, scan.confidence, None, None, scan.spacing), {"b": 1}, 0) is None


def test_a_class_that_is_nowhere_has_no_dice():
    scan, _ = scans(2, 0)
    assert measure(scan, {"b": 1, "d": 3}, 0).dice["d"] is None
