# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Real street scenes with other classes than the bundle's own: eleven of them, ignored pixels, groups."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dacal_med.io.reading import read_image
from tests.bundles.builders import STREETS, command
from tests.processes import run_here

THINGS = ["car", "pedestrian"]


@pytest.fixture
def few(shared_data, tmp_path):
    """A few of the frames, those that are evaluated in two groups."""
    root = shared_data / "camvid_day2dusk"
    content = json.loads((root / "datalist.json").read_text())
    for key, number in (("source", 4), ("target_train", 3), ("target_val", 3)):
        content[key] = [{part: str(root / name) for part, name in entry.items()} for entry in content[key][:number]]
    for number, entry in enumerate(content["target_val"]):
        entry["group"] = "first" if number == 0 else "rest"
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    return content


def test_every_class_is_measured_over_the_pixels_that_are_not_ignored(few, tmp_path):
    subsets = {"2 classes": [name for name in few["labels"].values() if name.lower() in THINGS]}
    assert len(subsets["2 classes"]) == 2
    options = {
        **STREETS.quick,
        "roi_size": [80, 64],
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
        "model_file": str(tmp_path / "model.pt"),
        "cache": "none",
        "validate#evaluator#class_subsets": subsets,
        "validate#inferer": {"_target_": "dacal_med.engines.ResizingInferer", "scale": 0.5},
    }
    done = run_here(command("train", bundle=STREETS, **options))
    assert done.returncode == 0, done.stderr[-3000:]
    after = json.loads((tmp_path / "out" / "metrics.json").read_text())["after"]

    labels = [read_image(entry["label"]).array for entry in few["target_val"]]
    classes = {int(value): name for value, name in few["labels"].items() if int(value) != 255}
    assert list(after["per_class"]) == list(classes.values()) and len(classes) == 11
    for value, name in classes.items():
        assert after["per_class"][name]["voxels"] == sum(int(np.count_nonzero(label == value)) for label in labels)
    assert after["voxels"] == sum(int(np.count_nonzero(label != 255)) for label in labels)
    assert sum(label.size for label in labels) > after["voxels"]

    present = [scores["iou"] for scores in after["per_class"].values() if scores["iou"] is not None]
    assert after["miou"] == pytest.approx(sum(present) / len(present))
    # Without a background every pixel is foreground.
    assert after["foreground_ece"] == after["ece"]
    assert {name: group["cases"] for name, group in after["per_group"].items()} == {"first": 1, "rest": 2}
    things = [after["per_class"][name]["iou"] for name in subsets["2 classes"]]
    expected = [value for value in things if value is not None]
    assert after["class_subsets"]["2 classes"]["miou"] == (pytest.approx(np.mean(expected)) if expected else None)
