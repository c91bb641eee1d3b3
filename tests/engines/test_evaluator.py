# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation: probabilities averaged over windows, scores from one pass, nothing left behind."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from ignite.engine import Events
from monai.inferers import SimpleInferer, SlidingWindowInferer
from torch import nn

from dacal_med.core.scores import summarise
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.engines import CalibrationEvaluator
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.io.errors import InputError
from tests.engines.builders import blobs, tiny_network

NAMES = ["background", "one", "two"]


class ByBrightness(nn.Module):
    """Logits that differ from window to window: the window's mean is one of them."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        mean = image.mean(dim=tuple(range(2, image.dim())), keepdim=True)
        return torch.cat([image, 50.0 * (mean - 0.5).expand_as(image), -image], dim=1)


@pytest.mark.parametrize("dims", [2, 3])
def test_overlapping_windows_average_probabilities_not_logits(dims):
    image = torch.rand(1, 1, *[6] * dims)
    inferer = SlidingWindowInferer([4] + [6] * (dims - 1), sw_batch_size=2, overlap=0.5, mode="constant")
    found = predict_probabilities(inferer, ByBrightness(), image)
    total = torch.zeros(1, 3, *[6] * dims)
    count = torch.zeros(1, 1, *[6] * dims)
    for start in (0, 2):
        window = image[:, :, start : start + 4]
        total[:, :, start : start + 4] += ByBrightness()(window).softmax(dim=1)
        count[:, :, start : start + 4] += 1
    torch.testing.assert_close(found, total / count)
    averaged_logits = inferer(image, ByBrightness()).softmax(dim=1)
    assert (found - averaged_logits).abs().max() > 1e-3
    torch.testing.assert_close(found.sum(dim=1), torch.ones(1, *[6] * dims))


@pytest.mark.parametrize("dims", [2, 3])
def test_scores_are_those_of_the_statistics_of_every_case(dims):
    data, network = blobs(4, dims, 1.0, 3), tiny_network(dims).eval()
    evaluator = CalibrationEvaluator("cpu", data, network, NAMES)
    evaluator.run()
    expected = SegmentationStatistics(3, boundary_width=2)
    for item in data:
        with torch.no_grad():
            expected.update(network(item["image"][None]).softmax(dim=1), item["label"][None])
    assert evaluator.scores["ece"] == pytest.approx(summarise(expected, NAMES)["ece"], abs=1e-7)
    assert evaluator.scores["dice"] == pytest.approx(summarise(expected, NAMES)["dice"], abs=1e-12)
    assert torch.equal(evaluator.pooled.confusion, expected.confusion)
    assert len(evaluator.cases) == evaluator.scores["per_case"]["dice"]["n"] == 4
    assert evaluator.state.metrics["dice"] == evaluator.scores["dice"]


def test_a_second_run_starts_anew():
    evaluator = CalibrationEvaluator("cpu", blobs(2, 2, 1.0, 3), tiny_network(2), NAMES)
    evaluator.run()
    first = evaluator.scores
    evaluator.run()
    assert evaluator.scores == first
    evaluator.network = tiny_network(2, seed=1)
    evaluator.run()
    assert evaluator.scores != first


def test_predicts_in_evaluation_mode_and_gives_the_mode_back():
    network = tiny_network(2, norm="BATCH", dropout=0.5).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    evaluator = CalibrationEvaluator("cpu", blobs(2, 2, 1.0, 3), network, NAMES)
    evaluator.run()
    assert network.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.named_buffers())


def test_ignored_voxels_do_not_count():
    data = blobs(1, 2, 1.0, 3)
    ignored = int((data[0]["label"] == 2).sum())
    data[0]["label"][data[0]["label"] == 2] = 255
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(2), NAMES)
    evaluator.run()
    assert evaluator.scores["voxels"] == 16 * 16 - ignored
    assert evaluator.scores["per_class"]["two"]["voxels"] == 0


def test_output_of_a_case_is_there_for_handlers():
    seen = []
    evaluator = CalibrationEvaluator("cpu", blobs(3, 2, 1.0, 3), tiny_network(2), NAMES, SimpleInferer())
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda e: seen.append(e.state.output))
    evaluator.run()
    assert [output["index"] for output in seen] == [0, 1, 2]
    assert all(output["probabilities"].shape == (1, 3, 16, 16) for output in seen)


def test_nothing_of_an_image_stays_after_the_next_one():
    """However many images: only the newest is held, and the sums of the others."""
    evaluator = CalibrationEvaluator("cpu", blobs(5, 2, 1.0, 3), tiny_network(2), NAMES)
    held: list[weakref.ref] = []
    alive = []

    def look(engine):
        held.extend(weakref.ref(engine.state.output[name]) for name in ("image", "label", "probabilities"))
        alive.append(sum(reference() is not None for reference in held))

    evaluator.add_event_handler(Events.ITERATION_COMPLETED, look)
    evaluator.run()
    assert alive == [3] * 5


def test_driving_counts_every_class():
    evaluator = CalibrationEvaluator("cpu", blobs(2, 2, 1.0, 3), tiny_network(2), NAMES, background=None)
    evaluator.run()
    per_class = evaluator.scores["per_class"].values()
    assert evaluator.scores["miou"] == pytest.approx(sum(c["iou"] for c in per_class) / 3)
    assert not math.isnan(evaluator.scores["foreground_ece"])
    assert evaluator.scores["foreground_ece"] == evaluator.scores["ece"]


@pytest.mark.parametrize("dims", [2, 3])
def test_scores_by_group_are_those_of_the_group_s_cases_alone(dims):
    data, network = blobs(5, dims, 1.0, 3), tiny_network(dims)
    names = ["site b", "site a", "site b", "site a", "site b"]
    evaluator = CalibrationEvaluator(
        "cpu", [{**item, "group": name} for item, name in zip(data, names, strict=True)], network, NAMES
    )
    evaluator.run()
    assert list(evaluator.scores["per_group"]) == ["site a", "site b"]
    for name in ("site a", "site b"):
        alone = CalibrationEvaluator("cpu", [d for d, n in zip(data, names, strict=True) if n == name], network, NAMES)
        alone.run()
        expected = {key: value for key, value in alone.scores.items() if key != "per_case"}
        assert evaluator.scores["per_group"][name] == {"cases": names.count(name), **expected}
    assert "per_group" not in alone.scores
    assert evaluator.scores["voxels"] == sum(g["voxels"] for g in evaluator.scores["per_group"].values())


def test_means_over_subsets_of_classes():
    data = blobs(2, 2, 1.0, 3)
    subsets = {"both": ["two", "one"], "one": ["one"], "with background": ["background", "two"]}
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(2), NAMES, class_subsets=subsets)
    evaluator.run()
    scores, found = evaluator.scores, evaluator.scores["class_subsets"]
    assert found["both"] == pytest.approx({"dice": scores["dice"], "miou": scores["miou"]})
    for name, classes in subsets.items():
        values = [scores["per_class"][c] for c in classes]
        assert found[name]["miou"] == pytest.approx(sum(v["iou"] for v in values) / len(values))
        assert found[name]["dice"] == pytest.approx(sum(v["dice"] for v in values) / len(values))


def test_absent_classes_do_not_count_in_a_subset():
    statistics = SegmentationStatistics(4)
    probabilities = torch.zeros(1, 4, 2, 2)
    probabilities[:, 1] = 1.0
    statistics.update(probabilities, torch.tensor([[[[1, 1], [0, 1]]]]))
    found = summarise(statistics, ["zero", "one", "two", "three"], {"some": ["one", "two"], "none": ["two", "three"]})
    assert found["class_subsets"] == {
        "some": {"dice": pytest.approx(6 / 7), "miou": 0.75},
        "none": {"dice": None, "miou": None},
    }


@pytest.mark.parametrize(
    ("subsets", "message"),
    [
        ({"some": ["one", "tow"]}, "class_subsets: 'some': found no class 'tow'; did you mean 'two'?"),
        ({"some": ["xyz"]}, "class_subsets: 'some': found no class 'xyz'; the classes are background, one, two"),
        ({"some": ["one", "one"]}, "class_subsets: 'some': found one more than once, wanted each class once"),
        ({"some": []}, r"class_subsets: 'some': found \[\], wanted a name and a list of class names"),
        ({"some": "one"}, "class_subsets: 'some': found 'one', wanted a name and a list of class names"),
    ],
)
def test_subsets_that_are_none_are_refused(subsets, message):
    with pytest.raises(InputError, match=message):
        CalibrationEvaluator("cpu", blobs(1, 2, 1.0, 3), tiny_network(2), NAMES, class_subsets=subsets)


@pytest.mark.parametrize("dims", [2, 3])
def test_dice_of_regions(dims):
    data, regions = blobs(3, dims, 1.0, 3), {"either": ["one", 2], "two alone": ["two"]}
    data[0]["label"][data[0]["label"] == 1] = 255
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(dims), NAMES, regions=regions)
    evaluator.run()
    scores, found = evaluator.scores, evaluator.scores["regions"]
    sums = evaluator.pooled.confusion
    assert found["either"]["dice"] == 2 * int(sums[1:, 1:].sum()) / int(sums[1:].sum() + sums[:, 1:].sum())
    assert found["either"]["voxels"] == sum(int(((x["label"] == 1) | (x["label"] == 2)).sum()) for x in data)
    assert found["two alone"]["dice"] == scores["per_class"]["two"]["dice"]
    by_case = [evaluator.summarise([case], [None])["regions"]["either"]["dice"] for case in evaluator.cases]
    assert found["either"]["per_case"]["dice"]["mean"] == pytest.approx(sum(by_case) / 3)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ({"whole": ["one", "tow"]}, "regions: 'whole': found no class 'tow'; did you mean 'two'?"),
        ({"whole": [3]}, "regions: 'whole': found the class 3, wanted 0 to 2"),
        ({"whole": []}, r"regions: 'whole': found \[\], wanted a name and a list of class names"),
    ],
)
def test_regions_that_are_none_are_refused(regions, message):
    with pytest.raises(InputError, match=message):
        CalibrationEvaluator("cpu", blobs(1, 2, 1.0, 3), tiny_network(2), NAMES, regions=regions)


def test_a_network_of_other_classes_is_named():
    evaluator = CalibrationEvaluator("cpu", blobs(1, 2, 1.0, 3), tiny_network(2), [*NAMES, "three"])
    with pytest.raises(
        InputError, match=r"the network gives 3 classes, but the data has 4 \(background, one, two, three"
    ):
        evaluator.run()


def test_predictions_of_another_size_than_the_label_are_named():
    data = blobs(1, 2, 1.0, 3)
    data[0]["image"] = data[0]["image"][:, ::2, ::2]
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(2), NAMES)
    with pytest.raises(InputError, match=r"predictions of \(8, 8\) for a label of \(16, 16\).*ResizingInferer"):
        evaluator.run()
