# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The evaluator's mIoU is that of Cityscapes' own evaluation script, on the same files."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose, LoadImaged
from PIL import Image
from torch import nn

from dacal_med.data import check_data, load_datalist
from dacal_med.engines import CalibrationEvaluator
from dacal_med.transforms import LabelsToChannelsd

script = pytest.importorskip(
    "cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling", reason="needs the package cityscapesscripts"
)

WIDTH, HEIGHT = 96, 48
KNOWN = [label for label in script.labels if label.id >= 0]
EVALUATED = [label.id for label in KNOWN if not label.ignoreInEval]
IGNORED = [label.id for label in KNOWN if label.ignoreInEval]


class Recorded(nn.Module):
    """ "Predicts" the class ids that its image holds."""

    def forward(self, image):
        ids = torch.tensor(EVALUATED, dtype=image.dtype, device=image.device)
        return 30.0 * (image == ids.view(1, -1, *[1] * (image.dim() - 2)))


def write(folder: Path, truths: list[np.ndarray], predictions: list[np.ndarray]) -> None:
    """Write label ids in Cityscapes' layout, and a ``datalist.json`` that reads the same files."""
    entries = []
    for number, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        stem = f"zurich_{number:06d}_000019"
        entry = {"image": f"results/{stem}.png", "label": f"gtFine/val/zurich/{stem}_gtFine_labelIds.png"}
        for array, name in ((prediction, entry["image"]), (truth, entry["label"])):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / name)
        entries.append(entry)
    for name in ("other.png", "other_label.png"):
        Image.fromarray(np.full((HEIGHT, WIDTH), EVALUATED[0], np.uint8)).save(folder / name)
    content = {
        # Every id by its own name; those that the script ignores are ignored here.
        "labels": {str(label.id): "ignore" if label.ignoreInEval else label.name for label in KNOWN},
        "source": [{"image": "other.png", "label": "other_label.png"}],
        "target_train": [{"image": "other.png"}],
        "target_val": entries,
    }
    (folder / "datalist.json").write_text(json.dumps(content))


def theirs(folder: Path) -> dict:
    """Run the script as its ``main`` does, with the folders of this test."""
    options = copy.copy(script.args)
    options.evalInstLevelScore, options.JSONOutput, options.quiet = False, False, True
    options.predictionPath, options.predictionWalk = str(folder / "results"), None
    truths = sorted(map(str, (folder / "gtFine" / "val").glob("*/*_gtFine_labelIds.png")))
    return script.evaluateImgLists([script.getPrediction(options, truth) for truth in truths], truths, options)


def ours(folder: Path) -> dict:
    datalist = load_datalist(folder)
    check_data(datalist, 2, 1, progress=False)
    loading = Compose(
        [
            LoadImaged(["image", "label"], ensure_channel_first=True, image_only=True),
            LabelsToChannelsd("label", datalist.label_values, datalist.ignore_values),
        ]
    )
    cases = [loading(dict(entry)) for entry in datalist.target_val]
    evaluator = CalibrationEvaluator("cpu", cases, Recorded(), datalist.class_names, background=None)
    evaluator.run()
    return evaluator.scores


def compare(folder: Path) -> tuple[dict, dict]:
    found, wanted = ours(folder), theirs(folder)
    assert found["miou"] == pytest.approx(wanted["averageScoreClasses"], abs=1e-9, rel=0)
    for number in EVALUATED:
        name = script.id2label[number].name
        iou, expected = found["per_class"][name]["iou"], wanted["classScores"][name]
        if math.isnan(expected):
            assert iou is None
        else:
            assert iou == pytest.approx(expected, abs=1e-9, rel=0)
    confusion = np.array(wanted["confMatrix"])
    assert found["voxels"] == confusion[EVALUATED].sum()
    return found, wanted


def blocks(rng: np.random.Generator, ids: list[int], size: int) -> np.ndarray:
    """An image of square blocks, each of one of ``ids``."""
    small = rng.choice(ids, (-(-HEIGHT // size), -(-WIDTH // size)))
    return np.kron(small, np.ones((size, size), int))[:HEIGHT, :WIDTH]


def test_structured_scenes_with_ignored_regions(tmp_path):
    rng = np.random.default_rng(0)
    truths = [blocks(rng, EVALUATED + IGNORED, 8) for _ in range(3)]
    predictions = []
    for truth in truths:
        wrong = rng.random(truth.shape) < 0.3
        guess = np.where(np.isin(truth, EVALUATED), truth, EVALUATED[3])
        predictions.append(np.where(wrong, rng.choice(EVALUATED, truth.shape), guess))
    write(tmp_path, truths, predictions)
    found, _ = compare(tmp_path)
    assert 0.3 < found["miou"] < 0.9


def test_absent_classes_and_classes_that_are_only_predicted(tmp_path):
    """Three kinds of absence, each treated as the script treats it."""
    train, bus, truck, road, void = 31, 28, 27, 7, 0
    truth = np.full((HEIGHT, WIDTH), road)
    truth[:8] = void
    prediction = truth.copy()
    prediction[:8] = truck  # on ignored pixels alone
    prediction[20:22, :10] = bus  # in no label
    write(tmp_path, [truth], [prediction])
    found, wanted = compare(tmp_path)
    assert found["per_class"]["train"]["iou"] is None and math.isnan(wanted["classScores"]["train"])
    assert found["per_class"]["truck"]["iou"] is None and math.isnan(wanted["classScores"]["truck"])
    assert found["per_class"]["bus"]["iou"] == wanted["classScores"]["bus"] == 0.0
    road_pixels = (HEIGHT - 8) * WIDTH
    assert found["miou"] == pytest.approx(((road_pixels - 20) / road_pixels + 0.0) / 2, abs=1e-12)
    assert train in EVALUATED


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 3, 16]), images=st.integers(1, 3))
def test_random_files(tmp_path_factory, seed, size, images):
    rng = np.random.default_rng(seed)
    present = list(rng.choice(EVALUATED, rng.integers(2, len(EVALUATED)), replace=False))
    truths = [blocks(rng, [*present, *IGNORED[:4]], size) for _ in range(images)]
    predictions = [blocks(rng, present[: len(present) // 2 + 1], size) for _ in range(images)]
    folder = tmp_path_factory.mktemp("files")
    write(folder, truths, predictions)
    compare(folder)
