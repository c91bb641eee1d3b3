# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Descriptions of transforms: equal for equal ones, in any process; different wherever a setting differs."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from monai.transforms import (
    Compose,
    Lambdad,
    LoadImaged,
    RandGaussianNoised,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from dacal_med.data.fingerprint import describe
from dacal_med.transforms import LabelsToChannelsd, intensity_transform

MAKERS = {
    "reader": lambda: LoadImaged("image", reader="NibabelReader"),
    "readers": lambda: LoadImaged("image"),
    "spacing": lambda: Spacingd("image", (1.0, 1.0, 1.0)),
    "other spacing": lambda: Spacingd("image", (1.0, 1.0, 1.001)),
    "mode": lambda: Spacingd("image", (1.0, 1.0, 1.0), mode="nearest"),
    "key": lambda: Spacingd("label", (1.0, 1.0, 1.0)),
    "pad": lambda: SpatialPadd("image", (8, 8)),
    "larger pad": lambda: SpatialPadd("image", (8, 9)),
    "CT": lambda: intensity_transform("CT"),
    "MR": lambda: intensity_transform("MR"),
    "range": lambda: ScaleIntensityRanged("image", 0.0, 1.0),
    "labels": lambda: LabelsToChannelsd("label", [0, 1, 2]),
    "other labels": lambda: LabelsToChannelsd("label", [0, 2, 1]),
    "ignored": lambda: LabelsToChannelsd("label", [0, 1], [2]),
    "function": lambda: Lambdad("image", lambda x: x + 1),
    "other function": lambda: Lambdad("image", lambda x: x + 2),
    "closed over": lambda: Lambdad("image", add(1)),
    "closed over other": lambda: Lambdad("image", add(2)),
    "partial": lambda: partial(add, 1),
    "other partial": lambda: partial(add, 2),
    "nothing": lambda: Compose([]),
    "array": lambda: np.arange(3),
    "other array": lambda: np.arange(1, 4),
    "tensor of floats": lambda: torch.arange(3.0),
}


def add(number: int):
    return lambda x: x + number


def text(value: object) -> str:
    return json.dumps(describe(value))


def test_all_differ_and_each_equals_itself_made_anew():
    found = {name: text(make()) for name, make in MAKERS.items()}
    assert len(set(found.values())) == len(MAKERS)
    assert found == {name: text(make()) for name, make in MAKERS.items()}
    chains = [text(Compose([MAKERS[a](), MAKERS[b]()])) for a, b in (("pad", "CT"), ("CT", "pad"), ("pad", "MR"))]
    assert len(set(chains)) == 3


def test_the_same_in_another_process():
    """No address and no order of a set goes into it."""
    code = (
        "import json; from monai.transforms import Compose, LoadImaged, Spacingd;"
        "from dacal_med.data.fingerprint import describe;"
        "print(json.dumps(describe([Compose([LoadImaged('image'), Spacingd('image', (1.0, 2.0))]), {'b', 'a', 'c'}])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = text([Compose([LoadImaged("image"), Spacingd("image", (1.0, 2.0))]), {"b", "a", "c"}])
    assert done.stdout.splitlines()[-1] == here
    assert "0x" not in here


def test_chance_is_left_out():
    one, other = RandGaussianNoised("image"), RandGaussianNoised("image")
    one.set_random_state(seed=1)
    one({"image": torch.zeros(1, 3, 3)})
    other.set_random_state(seed=2)
    assert "RandomState" not in text(one)
    assert text(RandGaussianNoised("image", std=0.1)) != text(RandGaussianNoised("image", std=0.2))


def test_what_contains_itself_ends():
    ring: list[object] = [1]
    ring.append(ring)
    assert describe(ring) == [1, "itself"]


@pytest.mark.parametrize("value", [None, True, 3, 2.5, "text"])
def test_plain_values_stay(value):
    assert describe(value) == value
