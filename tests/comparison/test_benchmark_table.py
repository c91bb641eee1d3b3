# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Results stand beside the published numbers of the same score, and say where they cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dacal_med.comparison.aggregate import collect
from dacal_med.comparison.benchmark_table import benchmark_markdown, benchmark_values, known_tasks
from dacal_med.comparison.methods import Method
from dacal_med.comparison.protocols import PROTOCOLS
from dacal_med.comparison.published import PublishedResult, Task, load_published
from dacal_med.data import Datalist
from tests.comparison.builders import CLASSES, sums, write_run
from tests.comparison.test_document import rows_after, summary

DATA = Datalist("A to B", Path("/data"), CLASSES, (0, 1, 2, 3), (), (), (), tuple({"image": f"{n}"} for n in range(3)))
SOURCE = "daformer"


def published(method="Theirs", metric="miou", classes=3, value=68.0, split="val", status="published", **options):
    return PublishedResult(method, metric, classes, "pixels", value, split, status, SOURCE, **{"where": "a", **options})


def task(*results, **options):
    return Task(
        "a2b", "A to B", "bundle", **{"data": "A to B", "target_val": 3, "classes": 4, **options}, results=results
    )


@pytest.fixture
def result(tmp_path):
    for seed, (miou, ece) in enumerate([(0.5, 0.1), (0.6, 0.2)]):
        after = summary(dice=0.7, miou=miou, ece=ece)
        after["class_subsets"] = {"2 classes": {"dice": 0.9, "miou": 0.8 + seed / 10}}
        write_run(tmp_path, "ours", seed, sums(3.0), after)
    return {**collect(tmp_path, [Method("ours", "Ours")], [0, 1], {}, "ours"), "facts": {"Seeds": "0, 1"}}


def table(result, chosen, datalist=DATA, protocol="daformer"):
    values = {**benchmark_values(result, chosen, datalist), "settings": ["train.json"]}
    values["protocol"] = {"name": protocol, "method": PROTOCOLS[protocol].method}
    text = benchmark_markdown(values, load_published().sources, "python -m dacal_med benchmark")
    return text, rows_after(text, "Settings:"), values


def test_each_published_number_stands_in_the_column_of_our_same_score(result):
    chosen = task(
        published(),
        published("Theirs", classes=2, value=74.25, where="b"),
        published("Other", "ece", classes=2, value=4.59, split="unknown", status="third_party", where="c"),
        published("Other", classes=7, split="test"),
    )
    text, rows, values = table(result, chosen)
    assert rows[0] == [
        "method",
        *("mIoU, 3 classes (%) ↑", "mIoU, 2 classes (%) ↑", "mIoU, 7 classes (%) ↑", "ECE (%) ↓"),
        *("evaluated on", "source"),
    ]
    # Background does not count, so that three classes of four are all; two are a subset; seven nobody measured.
    assert rows[1] == ["Ours", "55.0 ± 7.1", "85.0 ± 7.1", "—", "15.00 ± 7.07", "target_val", "here, 2 seeds"]
    assert rows[2] == ["Theirs", "68.0", "74.25", "—", "—", "val", "published [1, 2]"]
    assert rows[3] == ["Other", "—", "—", "—", "4.59", "unknown", "third party [3]"]
    assert rows[4] == ["Other", "—", "—", "68.0", "—", "test", "published [1]"]
    assert "1. Hoyer, Dai, Van Gool: DAFormer" in text and "arXiv 2111.14887 (by the method's authors): a." in text
    assert "3. Hoyer" in text and "the authors' own table was not seen): c." in text
    assert 'Numbers on "test" are of images whose labels are not public' in text
    assert "Not comparable" not in text and values["complete"] is True


def test_what_is_measured_has_a_column_though_nobody_published_it(result):
    _, rows, _ = table(result, task(published(classes=2), published("Theirs", "ece", classes=2, value=4.0)))
    assert rows[0][1:4] == ["mIoU, 2 classes (%) ↑", "mIoU, 3 classes (%) ↑", "ECE (%) ↓"]
    assert rows[1][1:4] == ["85.0 ± 7.1", "55.0 ± 7.1", "15.00 ± 7.07"]
    assert rows[2][1:4] == ["68.0", "—", "4.0"]


def test_the_method_whose_settings_ran_is_marked(result):
    chosen = task(published("DAFormer"), published("HRDA", value=73.8))
    text, rows, _ = table(result, chosen, protocol="hrda")
    assert [row[0] for row in rows[2:]] == ["DAFormer", "**HRDA**"]
    assert "Bold: the method whose published settings the runs here have (--protocol hrda)." in text
    text, rows, _ = table(result, chosen, protocol="mic")
    assert [row[0] for row in rows[2:]] == ["DAFormer", "HRDA"] and "Bold:" not in text
    assert "No published numbers are known of MIC (DAFormer), whose settings the runs here have." in text


def test_a_mean_over_cases_is_compared_with_one(result):
    _, rows, _ = table(result, task(replace(published("Theirs", "dice"), over="cases")))
    assert rows[0][1] == "Dice, 3 classes, mean over cases (%) ↑"
    assert rows[1][1] == "50.0 ± 0.0"


@pytest.mark.parametrize("wrong", [{"data": "C to D"}, {"target_val": 500}])
def test_other_data_are_told(result, wrong):
    text, _, values = table(result, task(published(), **wrong))
    assert values["complete"] is False
    assert "**Not comparable**" in text and "the results here of 'A to B' with 3." in text


@pytest.mark.parametrize(("there", "ignored"), [(5, True), (3, False)])
def test_other_classes_of_the_labels_are_told(result, there, ignored):
    text, _, values = table(result, task(published(), classes=there))
    assert values["complete"] is False
    assert f"**Not comparable**: the published numbers are of labels with {there} classes, the results here" in text
    assert ("pixels of the others are ignored here" in text) is ignored
    assert "images in target_val" not in text


def test_without_published_numbers_ours_stand_alone(result):
    text, rows, values = table(result, None)
    assert "No published numbers are known for 'A to B' with this bundle." in text
    assert rows[0][1:4] == ["Dice, 3 classes (%) ↑", "mIoU, 3 classes (%) ↑", "ECE (%) ↓"]
    assert rows[1][:3] == ["Ours", "70.0 ± 0.0", "55.0 ± 7.1"] and len(rows) == 2
    assert values["published"] == [] and values["task"] is None


def test_failed_runs_are_told(tmp_path):
    write_run(tmp_path, "ours", 0, sums(3.0), summary(dice=0.7))
    result = collect(tmp_path, [Method("ours", "Ours")], [0, 1], {("ours", 1): "killed"}, "ours")
    text, rows, _ = table({**result, "facts": {}}, task(published()))
    assert "Runs without results; means are over the other seeds: Ours, seed 1." in text
    assert rows[1][-1] == "here, 1 seed"


def test_the_list_names_every_task_and_marks_third_parties():
    text = known_tasks(load_published())
    for name in load_published().tasks:
        assert f"| {name} |" in text
    assert "DAFormer mIoU 68.3 (19);" in text and "DA-Cal ECE 4.59 (third party)" in text
