# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The accumulator: the same in slabs and at once, in 2D and 3D; units, warnings, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from dacal_med.deploy.runtime.trust import SCHEMA, TrustAccumulator
from dacal_med.deploy.runtime.trust_histograms import BINS, leave_one_out, threshold

NAMES = ("background", "liver", "spleen")


def reference(**changes: Any) -> dict[str, Any]:
    """Usual: intensities near 0.5, confidences near 0.9."""

    def usual(centre: int, channels: int) -> dict[str, Any]:
        cases = np.stack([np.eye(BINS)[[centre + shift]] for shift in (-1, 0, 1)])
        distances = leave_one_out(cases)
        mean = cases.mean(axis=0)
        return {
            "mean": (mean if channels else mean[0]).tolist(),
            "distances": distances,
            "threshold": threshold(distances),
        }

    shifts = {name: [[(0.1, 0.2)], [(-0.3, 0.1)]] for name in NAMES[1:]}
    made = {"schema": SCHEMA, "class_names": list(NAMES), "background": 0, "bins": BINS}
    return {**made, "intensity": usual(25, 1), "confidence": usual(45, 0), "shifts": shifts, **changes}


def image_of(size: tuple[int, ...], confidence: float = 0.91) -> torch.Tensor:
    """The first half background, then liver and spleen, all equally sure."""
    classes = torch.zeros(size, dtype=torch.long)
    classes[size[0] // 2 :] = 1
    classes[3 * size[0] // 4 :] = 2
    other = (1 - confidence) / 2
    one_hot = torch.nn.functional.one_hot(classes, 3).movedim(-1, 0).float()
    return one_hot * (confidence - other) + other


@pytest.mark.parametrize("size", [(20, 12), (20, 12, 8)])
def test_slabs_give_what_the_whole_gives(size):
    probabilities, image = torch.randn(3, *size).mul(3).softmax(dim=0), torch.rand(1, *size)
    whole, slabs = (TrustAccumulator(NAMES, 2.0, reference()) for _ in range(2))
    whole.update(probabilities, image)
    for start in range(0, size[-1], 3):
        part = (..., slice(start, start + 3))
        slabs.update(probabilities[part], image[part])
    first, second = whole.result(), slabs.result()
    assert json.dumps(first, allow_nan=False)
    for name in NAMES[1:]:
        for key, value in first["classes"][name].items():
            assert second["classes"][name][key] == pytest.approx(value, rel=1e-5), key
    assert first["confidence_histogram"] == second["confidence_histogram"]
    assert first["intensity_histogram"] == second["intensity_histogram"]
    assert first["warnings"] == second["warnings"]


def test_numbers_of_a_known_image():
    trust = TrustAccumulator(NAMES, 500.0)
    trust.update(image_of((20, 10), 0.7))
    result = trust.result()
    liver = result["classes"]["liver"]
    assert liver["predicted_volume"] == pytest.approx(50 * 0.5)  # 50 voxels of half a millilitre
    assert liver["expected_volume"] == pytest.approx((50 * 0.7 + 150 * 0.15) * 0.5, rel=1e-5)
    assert liver["expected_dice"] == pytest.approx(2 * 35 / (50 + 35 + 22.5), abs=5e-3)
    assert liver["low_confidence_share"] == 1.0
    assert liver["mean_confidence"] == pytest.approx(0.7)
    assert liver["expected_dice_interval"][0] < liver["expected_dice"] < liver["expected_dice_interval"][1]
    assert liver["interval_from_cases"] == 0
    assert result["low_confidence_share"] == 1.0
    assert sum(result["confidence_histogram"]["all"]) == 200
    assert sum(result["confidence_histogram"]["foreground"]) == 100
    assert result["out_of_distribution"] == {"assessed": False, "unusual": None, "tests": {}}


def test_pictures_are_counted_in_pixels():
    trust = TrustAccumulator(NAMES, 1.0, unit="pixels")
    trust.update(image_of((20, 10)))
    assert trust.result()["unit"] == "pixels"
    assert trust.result()["classes"]["spleen"]["predicted_volume"] == 50


def test_without_background_every_class_is_a_structure():
    trust = TrustAccumulator(NAMES, 1.0, background=None)
    trust.update(image_of((20, 10)))
    result = trust.result()
    assert list(result["classes"]) == result["class_names"] == list(NAMES)
    assert result["background"] is None
    assert sum(result["confidence_histogram"]["foreground"]) == 200


@pytest.mark.parametrize("background", [0, 1, 2])
def test_the_background_is_named_and_no_structure(background):
    trust = TrustAccumulator(NAMES, 1.0, background=background)
    trust.update(image_of((20, 10)))
    result = trust.result()
    assert (result["class_names"], result["background"]) == (list(NAMES), background)
    sizes = {"background": 100, "liver": 50, "spleen": 50}
    del sizes[NAMES[background]]
    assert {name: found["predicted_volume"] * 1000 for name, found in result["classes"].items()} == sizes


def test_a_usual_image_raises_no_alarm():
    trust = TrustAccumulator(NAMES, 1.0, reference())
    trust.update(image_of((20, 10)), torch.full((1, 20, 10), 0.51))
    result = trust.result()
    assert result["out_of_distribution"]["unusual"] is False
    assert result["warnings"] == []
    assert result["classes"]["liver"]["interval_from_cases"] == 2


@pytest.mark.parametrize(("intensity", "confidence", "said"), [(0.9, 0.91, "intensities"), (0.51, 0.6, "confidence")])
def test_an_unusual_image_is_told(intensity, confidence, said):
    trust = TrustAccumulator(NAMES, 1.0, reference())
    trust.update(image_of((20, 10), confidence), torch.full((1, 20, 10), intensity))
    result = trust.result()
    assert result["out_of_distribution"]["unusual"] is True
    (warning,) = result["warnings"]
    assert warning.startswith("out of distribution") and said in warning


def test_a_structure_that_is_nowhere_is_told():
    trust = TrustAccumulator(NAMES, 1.0)
    trust.update(torch.tensor([0.9, 0.08, 0.02]).view(3, 1, 1).expand(3, 5, 5))
    result = trust.result()
    assert result["mean_expected_dice"] is None
    assert result["classes"]["liver"]["expected_dice_interval"] is None
    assert result["classes"]["liver"]["low_confidence_share"] is None
    assert result["warnings"] == ["liver, spleen: found nowhere in this image"]
    assert json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("probabilities", "image", "said"),
    [
        (torch.full((2, 4, 4), 0.5), None, "found 2 classes, wanted 3"),
        (torch.full((3, 4, 4), 0.5), None, "do not sum to 1"),
        (torch.full((3, 4, 4), float("nan")), None, "not finite"),
        (torch.tensor([1.5, -0.5, 0.0]).view(3, 1).expand(3, 4), None, "negative"),
        (torch.full((3, 4, 4), 1 / 3), torch.zeros(2, 4, 4), r"found \(2, 16\) channels x voxels, wanted \(1, 16\)"),
        (torch.full((3, 4, 4), 1 / 3), torch.zeros(1, 4, 5), r"found \(1, 20\)"),
        (torch.full((3, 4, 4), 1 / 3), torch.full((1, 4, 4), float("inf")), "not finite"),
    ],
)
def test_bad_slabs_are_refused_and_change_nothing(probabilities, image, said):
    trust = TrustAccumulator(NAMES, 1.0, reference())
    with pytest.raises(ValueError, match=said):
        trust.update(probabilities, image)
    with pytest.raises(ValueError, match="no voxel"):
        trust.result()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": reference(class_names=["background", "liver"])}, "'class_names'"),
        ({"reference": reference(schema=99)}, "'schema'"),
        ({"reference": reference(background=None)}, "'background'"),
        ({"reference": {k: v for k, v in reference().items() if k != "shifts"}}, "no 'shifts'"),
        ({"unit": "litres"}, "unit"),
        ({"voxel_volume_mm3": 0.0}, "positive"),
        ({"background": 3}, "background"),
    ],
)
def test_what_does_not_fit_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        TrustAccumulator(**{"class_names": NAMES, "voxel_volume_mm3": 1.0, **changes})
