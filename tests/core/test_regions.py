# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Unions of classes: Dice as of masks made voxel by voxel, in whole numbers, over cases as over all at once."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.core.regions import known_regions, region_classes, region_dice, region_voxels
from dacal_med.core.scores import dice, pool, summarise, summarise_run
from dacal_med.core.statistics import SegmentationStatistics
from tests.core.test_scores import IGNORED, problem, statistics_of

NAMES = ["zero", "one", "two", "three"]


def predicted(prediction: list[int], truth: list[int], classes: int = 4) -> SegmentationStatistics:
    """Statistics of voxels in a row, each predicted for certain."""
    one_hot = torch.nn.functional.one_hot(torch.tensor(prediction), classes).T[None].float()
    return statistics_of((one_hot, torch.tensor(truth).view(1, 1, -1)))


def test_known_answers():
    # Of 1 and 3: truth in 5 voxels, prediction in 4, both in 3; a 1 taken for a 3 is no error. The last is ignored.
    statistics = predicted([1, 3, 1, 0, 2, 3, 0, 1], [1, 1, 3, 3, 1, 2, 0, IGNORED])
    assert region_dice(statistics, [1, 3]) == 2 * 3 / (5 + 4)
    assert region_voxels(statistics, [1, 3]) == 5
    assert region_dice(statistics, [1, 2, 3]) == 2 * 5 / (6 + 5)
    assert region_dice(statistics, [0, 1, 2, 3]) == 1.0
    assert region_dice(statistics, [2]) == 0.0


def test_absent_in_truth_and_prediction_is_no_score():
    statistics = predicted([0, 1], [1, 0])
    assert math.isnan(region_dice(statistics, [2, 3]))
    assert summarise(statistics, NAMES, regions={"r": ["two", "three"]})["regions"] == {
        "r": {"dice": None, "voxels": 0}
    }


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), union=st.sets(st.integers(0, 3), min_size=1))
def test_dice_is_that_of_masks(seed, dims, union):
    probabilities, labels = problem(seed, dims, classes=4, batch=2)
    chosen = torch.tensor(sorted(union))
    kept = labels[:, 0] != IGNORED
    prediction, truth = (torch.isin(x, chosen) & kept for x in (probabilities.argmax(1), labels[:, 0]))
    wanted = 2 * int((prediction & truth).sum()) / (int(prediction.sum()) + int(truth.sum()))
    statistics = statistics_of((probabilities, labels))
    assert region_dice(statistics, sorted(union)) == wanted
    assert region_voxels(statistics, sorted(union)) == int(truth.sum())
    if len(union) == 1:
        assert wanted == float(dice(statistics)[union.pop()])


def test_counts_past_float32_stay_exact():
    statistics = SegmentationStatistics(3)
    statistics.confusion[1, 1], statistics.confusion[1, 2], statistics.confusion[2, 0] = 2**40, 1, 1
    assert region_dice(statistics, [1, 2]) == 2 * (2**40 + 1) / (2 * 2**40 + 3)
    assert region_voxels(statistics, [1, 2]) == 2**40 + 2


def test_pooled_over_voxels_and_mean_over_cases():
    cases = [predicted([1, 1, 0], [1, 0, 0]), predicted([2, 3, 0], [3, 2, 0]), predicted([0, 0], [0, 0])]
    regions = {"all three": ["one", "two", "three"], "core": ["two", "three"]}
    found = summarise_run(cases, NAMES, ["a", "b", "a"], regions=regions)
    assert found["regions"]["all three"]["dice"] == 2 * 3 / (3 + 4)
    # The third case has no such voxel, in truth or prediction, and counts in no mean.
    assert found["regions"]["all three"]["per_case"]["dice"] == {
        "mean": pytest.approx((2 / 3 + 1) / 2),
        "std": pytest.approx(math.sqrt(2) / 6),
        "n": 2,
    }
    assert found["regions"]["core"] == {
        "dice": 1.0,
        "voxels": 2,
        "per_case": {"dice": {"mean": 1.0, "std": None, "n": 1}},
    }
    assert found["per_group"]["a"]["regions"]["core"] == {"dice": None, "voxels": 0}
    assert found["per_group"]["b"]["regions"] == summarise(cases[1], NAMES, regions=regions)["regions"]
    assert found["regions"]["core"]["dice"] == summarise(pool(cases), NAMES, regions=regions)["regions"]["core"]["dice"]
    assert "regions" not in summarise_run(cases, NAMES)


def test_classes_by_name_or_index():
    assert region_classes({"a": ["one", 3], "b": [0]}, NAMES) == {"a": ["one", "three"], "b": ["zero"]}


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"r": ["one", "tow"]}, "'r': found no class 'tow'; did you mean 'two'?"),
        ({"r": [4]}, "'r': found the class 4, wanted 0 to 3"),
        ({"r": [-1]}, "'r': found the class -1, wanted 0 to 3"),
        ({"r": [True]}, "'r': found no class 'True'"),
        ({"r": ["one", 1]}, "'r': found one more than once, wanted each class once"),
        ({"r": []}, r"'r': found \[\], wanted a name and a list of class names"),
        ({"r": "one"}, "'r': found 'one', wanted a name and a list of class names"),
        ({"r": 1}, "'r': found 1, wanted a name and a list of class names"),
        (["one"], r"found \['one'\], wanted a list of classes by each region's name"),
    ],
)
def test_regions_that_are_none_are_refused(regions, message):
    with pytest.raises(ValueError, match=message):
        region_classes(regions, NAMES)


def test_regions_of_classes_that_a_data_set_has():
    regions = {"whole": ["one", "two"], "part": ["two"], "else": ["two", "five"]}
    assert known_regions(NAMES, regions) == {"whole": ["one", "two"], "part": ["two"]}
    assert known_regions(["background", "vessel"], regions) == {}
