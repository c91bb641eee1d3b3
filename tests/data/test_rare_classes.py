# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Rare class sampling against DAFormer's formula, and in the paired data set."""

from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import RandSpatialCropd

from dacal_med.data import PairedDataset, PairedLoader, RareClassSampling
from dacal_med.data.rare_classes import class_counts
from dacal_med.io.errors import InputError


def scenes(dims: int = 2) -> list[dict[str, torch.Tensor]]:
    """Six images of 8 voxels an axis; class 1 fills a half of four of them, class 2 one voxel of the last two."""
    items = []
    for index in range(6):
        label = torch.zeros(1, *[8] * dims, dtype=torch.uint8)
        if index < 4:
            label[:, :4] = 1
        else:
            label[(0, *[index] * dims)] = 2
            label[(0, *[0] * dims)] = 255
        items.append({"image": torch.full(label.shape, float(index)), "label": MetaTensor(label)})
    return items


def sampling(dims: int = 2, **options) -> RareClassSampling:
    return RareClassSampling(scenes(dims), 3, **{"min_voxels": 0, **options})


def test_counts_leave_out_what_is_no_class():
    assert class_counts(scenes(), 3).tolist() == [[32, 32, 0]] * 4 + [[62, 0, 1]] * 2


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_probabilities_are_the_papers(temperature):
    found = sampling(temperature=temperature)
    total = 4 * 64 + 2 * 63
    shares = [(4 * 32 + 2 * 62) / total, 4 * 32 / total, 2 / total]
    # The largest exponent is 1 / T = 100, within the range of a float.
    weights = [math.exp((1.0 - share) / temperature) for share in shares]
    np.testing.assert_allclose(found.probabilities, [w / sum(weights) for w in weights], rtol=1e-9)
    assert found.classes == [0, 1, 2]


@settings(deadline=None, max_examples=30)
@given(
    counts=st.lists(st.lists(st.integers(0, 50), min_size=4, max_size=4), min_size=1, max_size=5).filter(
        lambda rows: sum(map(sum, rows)) > 0
    ),
    seed=st.integers(0, 9),
)
def test_the_image_that_is_drawn_has_the_class_that_is_drawn(counts, seed):
    found = RareClassSampling([{}] * len(counts), 4, min_voxels=0, temperature=1.0, counts=counts)
    rng = np.random.default_rng(seed)
    for _ in range(10):
        case, wanted = found.choose(rng)
        assert counts[case][wanted] > 0
    assert found.probabilities.sum() == pytest.approx(1.0)


def test_classes_are_drawn_as_often_as_they_should():
    found = sampling(temperature=0.5)
    rng = np.random.default_rng(0)
    drawn = np.bincount([found.choose(rng)[1] for _ in range(4000)], minlength=3) / 4000
    np.testing.assert_allclose(drawn, found.probabilities, atol=0.03)


def paired(dims: int = 2, **options) -> PairedDataset:
    crop = RandSpatialCropd(["image", "label"], [2] * dims, random_size=False)
    data = scenes(dims)
    return PairedDataset(data, data[:3], source_transform=crop, seed=5, **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_crops_are_drawn_until_one_has_the_class(dims):
    patient = paired(dims, source_sampling=sampling(dims, classes=[2], tries=400))
    once = paired(dims, source_sampling=sampling(dims, classes=[2], tries=0))
    assert all((patient[k]["source"]["label"] == 2).any() for k in range(12))
    assert not all((once[k]["source"]["label"] == 2).any() for k in range(12))
    assert all(patient.case_index("source", k) in (4, 5) for k in range(12))
    # A crop that had it at once is the same crop.
    for k in range(12):
        if (once[k]["source"]["label"] == 2).any():
            assert torch.equal(once[k]["source"]["image"], patient[k]["source"]["image"])


def test_a_draw_depends_on_seed_and_number_alone():
    first = list(islice(PairedLoader(paired(source_sampling=sampling()), 2, rank=0, world_size=1), 6))
    resumed = PairedLoader(paired(source_sampling=sampling()), 2, rank=0, world_size=1)
    resumed.start_at(3)
    for expected, found in zip(first[3:], islice(resumed, 3), strict=True):
        assert torch.equal(expected["source"]["image"], found["source"]["image"])
        assert torch.equal(expected["source"]["label"], found["source"]["label"])
    halves = [PairedLoader(paired(source_sampling=sampling()), 1, rank=r, world_size=2) for r in range(2)]
    parts = [next(iter(half))["source"]["image"] for half in halves]
    assert torch.equal(torch.cat(parts), first[0]["source"]["image"])


def test_the_target_is_drawn_as_before():
    plain, sampled = paired(), paired(source_sampling=sampling())
    assert [plain.case_index("target", k) for k in range(9)] == [sampled.case_index("target", k) for k in range(9)]
    assert torch.equal(plain[4]["target"]["image"], sampled[4]["target"]["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"classes": ["liver"], "class_names": ["background", "spleen", "kidney"]},
            r"found 'liver', wanted one of \['b",
        ),
        ({"classes": [3]}, "found 3, wanted one of .* or 0 to 2"),
        ({"classes": [0.5]}, "classes: found 0.5, wanted one of"),
        ({"classes": [True]}, "classes: found True, wanted one of"),
        ({"classes": "tumour"}, "classes: found 'tumour', wanted a list"),
        ({"classes": 1}, "classes: found 1, wanted a list"),
        ({"temperature": "0.01"}, "temperature='0.01'.* wanted numbers"),
        ({"classes": []}, "classes: found none"),
        ({"min_voxels": 1}, "no source image has more than min_voxels=1 voxels of class '2', the most is 1"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"tries": -1}, "tries=-1"),
        ({"counts": [[1, 2, 3]]}, r"found counts of shape \(1, 3\) and sum 6, wanted \(6, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        sampling(**options)


def test_a_task_without_the_class_says_so():
    with pytest.raises(InputError, match="no source image has more than min_voxels=0 voxels of class 'tumour'"):
        RareClassSampling(scenes(), 4, min_voxels=0, classes=["tumour"], class_names=["a", "b", "c", "tumour"])
    assert RareClassSampling(scenes(), 4, min_voxels=0).classes == [0, 1, 2]


def test_sampling_of_another_data_set_is_refused():
    with pytest.raises(ValueError, match="made for 6 images; wanted the 2"):
        PairedDataset(scenes()[:2], scenes(), source_sampling=sampling())
