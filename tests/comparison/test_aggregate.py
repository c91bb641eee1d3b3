# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Means, spreads and paired intervals agree with scipy's; what is missing stays missing and is told."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dacal_med.comparison.aggregate import collect, paired_difference, pooled_tables, run_folder
from dacal_med.comparison.methods import Method
from dacal_med.core.scores import summarise_run
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.io.errors import InputError
from tests.comparison.builders import CLASSES, labels, probabilities, scores, sums, write_run

A, B = Method("a", "Method A"), Method("b", "Method B")


def summary(value, **others):
    per_class = {"liver": {"dice": value / 2}, "absent organ": {"dice": None}}
    return {"dice": value, "ece": 0.1, "per_class": per_class, "per_case": {"dice": {"mean": value, "n": 3}}, **others}


@pytest.fixture
def two(tmp_path):
    """Methods a (the reference) and b with three seeds each and known pooled scores."""
    for seed, (of_a, of_b) in enumerate([(0.5, 0.6), (0.6, 0.8), (0.7, 0.7)]):
        write_run(tmp_path, "a", seed, sums(3.0, seed=seed), summary(of_a), seconds=60.0 + seed, memory=None)
        write_run(tmp_path, "b", seed, sums(4.0, seed=seed), summary(of_b, ece=None if seed else 0.2))
    return tmp_path


def test_mean_and_std_keep_the_structure(two):
    entry = collect(two, [A, B], [0, 1, 2], {}, "a")["methods"]["a"]
    assert entry["title"] == "Method A"
    assert (entry["oracle"], entry["base"], entry["failed"]) == (False, None, {})
    assert list(entry["seeds"]) == ["0", "1", "2"]
    assert entry["seeds"]["1"] == summary(0.6)
    assert entry["mean"]["dice"] == pytest.approx(0.6)
    assert entry["std"]["dice"] == pytest.approx(0.1)
    assert entry["mean"]["per_class"]["liver"]["dice"] == pytest.approx(0.3)
    assert entry["std"]["per_class"]["liver"]["dice"] == pytest.approx(0.05)
    assert entry["mean"]["per_case"]["dice"] == {"mean": pytest.approx(0.6), "n": 3.0}
    assert entry["std"]["per_case"]["dice"]["n"] == 0.0
    assert entry["seconds"] == {"mean": 61.0, "std": 1.0}
    assert entry["peak_memory_mib"] == {"mean": None, "std": None}


def test_an_absent_class_stays_none(two):
    entry = collect(two, [A, B], [0, 1, 2], {}, "a")["methods"]["a"]
    assert entry["mean"]["per_class"]["absent organ"] == {"dice": None}
    assert entry["std"]["per_class"]["absent organ"] == {"dice": None}


def test_a_score_of_some_seeds_is_averaged_over_those(two):
    result = collect(two, [A, B], [0, 1, 2], {}, "a")
    assert result["methods"]["b"]["mean"]["ece"] == 0.2
    assert result["methods"]["b"]["std"]["ece"] is None
    assert result["paired"]["b"]["ece"] == {
        "difference": pytest.approx(0.1),
        "low": None,
        "high": None,
        "relative": pytest.approx(1.0),
        "n": 1,
    }


def test_paired_interval_over_seeds_is_scipys(two):
    result = collect(two, [A, B], [0, 1, 2], {}, "a")
    assert list(result["paired"]) == ["b"]
    found = result["paired"]["b"]["dice"]
    wanted = stats.ttest_rel([0.6, 0.8, 0.7], [0.5, 0.6, 0.7]).confidence_interval(0.95)
    assert found["difference"] == pytest.approx(0.1)
    assert (found["low"], found["high"]) == (pytest.approx(wanted.low), pytest.approx(wanted.high))
    assert found["relative"] == pytest.approx(0.1 / 0.6)
    assert found["n"] == 3


def dice_of_case(case, quality, seed):
    """Mean Dice over liver and spleen, from labels."""
    truth = labels(case)[0, 0].numpy()
    prediction = probabilities(labels(case), quality, 1.0, 1000 * seed + case)[0].argmax(0).numpy()
    overlaps = [
        2 * ((truth == k) & (prediction == k)).sum() / ((truth == k).sum() + (prediction == k).sum()) for k in (1, 2)
    ]
    return np.mean(overlaps)


def test_paired_interval_over_cases_is_scipys(two):
    found = collect(two, [A, B], [0, 1, 2], {}, "a")["per_case_paired"]["b"]["dice"]
    of_a, of_b = (
        [np.mean([dice_of_case(case, quality, seed) for seed in range(3)]) for case in range(3)]
        for quality in (3.0, 4.0)
    )
    wanted = stats.ttest_rel(of_b, of_a).confidence_interval(0.95)
    assert found["n"] == 3
    assert found["difference"] == pytest.approx(np.mean(of_b) - np.mean(of_a))
    assert found["difference"] > 0.01
    assert (found["low"], found["high"]) == (pytest.approx(wanted.low), pytest.approx(wanted.high))


def test_a_case_without_the_score_is_dropped(tmp_path):
    empty = SegmentationStatistics(len(CLASSES))
    background = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    empty.update(torch.tensor([0.9, 0.1, 0.0, 0.0]).view(1, 4, 1, 1).expand(1, 4, 8, 8), background)
    for name, quality in (("a", 3.0), ("b", 4.0)):
        write_run(tmp_path, name, 0, [*sums(quality), empty])
    found = collect(tmp_path, [A, B], [0], {}, "a")["per_case_paired"]["b"]
    assert (found["dice"]["n"], found["foreground_ece"]["n"], found["ece"]["n"]) == (3, 3, 4)


def test_one_seed_has_neither_spread_nor_interval(two):
    result = collect(two, [A, B], [0], {}, "a")
    assert result["methods"]["a"]["mean"]["dice"] == 0.5
    assert result["methods"]["a"]["std"]["dice"] is None
    assert result["methods"]["a"]["seconds"] == {"mean": 60.0, "std": None}
    found = result["paired"]["b"]["dice"]
    assert (found["difference"], found["low"], found["n"]) == (pytest.approx(0.1), None, 1)
    assert result["per_case_paired"]["b"]["dice"]["low"] is not None


def test_a_failed_seed_is_left_out_and_told(two):
    result = collect(two, [A, B], [0, 1, 2, 3], {("a", 2): "exit status 1: boom"}, "a")
    entry = result["methods"]["a"]
    assert entry["failed"]["2"] == "exit status 1: boom"
    assert "no metrics.json" in entry["failed"]["3"]
    assert list(entry["seeds"]) == ["0", "1"]
    assert entry["mean"]["dice"] == pytest.approx(0.55)
    assert result["paired"]["b"]["dice"]["n"] == 2
    assert result["paired"]["b"]["dice"]["difference"] == pytest.approx(0.15)


def test_a_method_without_results_still_appears(two):
    failures = {("b", seed): "killed" for seed in range(3)}
    result = collect(two, [A, B], [0, 1, 2], failures, "a")
    entry = result["methods"]["b"]
    assert (entry["seeds"], entry["mean"], entry["std"]) == ({}, None, None)
    assert entry["seconds"] == {"mean": None, "std": None}
    assert entry["failed"] == {"0": "killed", "1": "killed", "2": "killed"}
    nothing = {"difference": None, "low": None, "high": None, "relative": None, "n": 0}
    assert result["paired"]["b"]["dice"] == result["per_case_paired"]["b"]["dice"] == nothing
    json.dumps(result, allow_nan=False)
    assert list(pooled_tables(two, result)) == ["a"]


def test_a_reference_without_results_is_told(two):
    result = collect(two, [A, B], [0, 1, 2], {("a", seed): "killed" for seed in range(3)}, "a")
    assert result["paired"] == result["per_case_paired"] == {}
    assert result["notes"] == ["Method A, the reference, has no results: no paired differences."]
    with pytest.raises(InputError, match="reference: found 'z', wanted one of the methods: a, b"):
        collect(two, [A, B], [0], {}, "z")


def test_real_scores_are_ready_for_json(tmp_path):
    cases = sums(3.0)
    write_run(tmp_path, "a", 0, cases)
    result = collect(tmp_path, [A], [0], {}, "a")
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["class_names"] == list(CLASSES)
    assert result["cases"] == 3
    assert result["methods"]["a"]["mean"] == scores(cases)


def test_runs_on_other_cases_are_refused(two):
    write_run(two, "b", 1, sums(4.0, cases=2))
    with pytest.raises(InputError, match=r"seed_1.*found cases 2, wanted 3 as in .*a/seed_0"):
        collect(two, [A, B], [0, 1, 2], {}, "a")
    write_run(two, "b", 1, sums(4.0)[::-1])
    with pytest.raises(InputError, match=r"case 0 has other true labels than in .*a/seed_0"):
        collect(two, [A, B], [0, 1, 2], {}, "a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not readable as JSON"),
        ('{"after": {"dice": NaN}, "seconds": 1, "peak_memory_mib": 1}', "found NaN, wanted a number or null"),
        ('{"after": {}, "seconds": 1}', "wanted the keys after, seconds, peak_memory_mib"),
        ('{"after": 1, "seconds": 1, "peak_memory_mib": 1}', "after: found int"),
        ("[]", "found list"),
    ],
)
def test_damaged_metrics_are_named(two, text, message):
    (run_folder(two, "b", 1) / "metrics.json").write_text(text)
    with pytest.raises(InputError, match=rf"b/seed_1/metrics.json.*{message}"):
        collect(two, [A, B], [0, 1, 2], {}, "a")


def test_missing_statistics_are_named(two):
    (run_folder(two, "b", 1) / "statistics.pt").unlink()
    with pytest.raises(InputError, match=r"no statistics at .*b/seed_1"):
        collect(two, [A, B], [0, 1, 2], {}, "a")


def test_tables_are_pooled_over_cases_and_seeds(two):
    tables = pooled_tables(two, collect(two, [A, B], [0, 1], {}, "a"))
    voxels = sum(float(case.confidence_count[1].sum()) for seed in (0, 1) for case in sums(3.0, seed=seed))
    right = sum(float(case.confidence_correct[1].sum()) for seed in (0, 1) for case in sums(3.0, seed=seed))
    table = tables["a"]
    assert float(table.count.sum()) == voxels
    assert float((table.count * table.accuracy)[table.count > 0].sum()) == pytest.approx(right)
    everything = pooled_tables(two, collect(two, [A, B], [0, 1], {}, "a"), region="all")
    assert float(everything["a"].count.sum()) == 2 * 3 * 16 * 16


def test_equal_pairs_have_an_interval_of_width_zero():
    found = paired_difference(np.array([0.5, 0.75]), np.array([0.25, 0.5]))
    assert found == {"difference": 0.25, "low": 0.25, "high": 0.25, "relative": 0.25 / 0.375, "n": 2}
    assert paired_difference(np.array([1.0]), np.array([0.0]))["relative"] is None
    assert not math.isnan(paired_difference(np.array([1.0]), np.array([0.0]))["difference"])


def test_groups_are_those_of_the_first_run_and_of_all(tmp_path):
    cases = sums(3.0)
    for seed in range(2):
        after = summarise_run(cases, CLASSES, ["a", "b", "a"], {"organs": ["liver", "spleen"]})
        write_run(tmp_path, "a", seed, cases, after, groups=["a", "b", "a"])
    mean = collect(tmp_path, [A], [0, 1], {}, "a")["methods"]["a"]["mean"]
    assert mean["per_group"]["a"]["cases"] == 2.0
    assert mean["per_group"]["b"]["miou"] == pytest.approx(summarise_run(cases[1:2], CLASSES)["miou"])
    assert mean["class_subsets"]["organs"]["dice"] == pytest.approx(after["dice"])
    write_run(tmp_path, "a", 1, cases, groups=["a", "b", "b"])
    with pytest.raises(InputError, match="found groups"):
        collect(tmp_path, [A], [0, 1], {}, "a")
