# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Normalisation by kind of image."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dacal_med.transforms.intensity import intensity_transform


def test_ct_window() -> None:
    image = torch.tensor([[-1000.0, -160.0, -60.0, 40.0, 240.0, 3000.0]])
    assert intensity_transform("CT")({"image": image})["image"][0].tolist() == pytest.approx([0, 0, 0.25, 0.5, 1, 1])


def test_rgb_bytes() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1)
    scaled = intensity_transform("rgb")({"image": image})["image"]
    assert scaled.dtype == torch.float32
    assert scaled.flatten().tolist() == pytest.approx([0, 0.2, 1])


@given(st.floats(0.1, 1e4), st.floats(-1e3, 1e3), st.sampled_from(["MR", "EM", "gray"]))
def test_others_do_not_depend_on_gain_and_offset(gain: float, offset: float, modality: str) -> None:
    image = torch.linspace(0, 1, 101).reshape(1, -1).double()
    image = torch.cat([image, image**2])
    scaled = intensity_transform(modality)({"image": image * gain + offset})["image"]
    wanted = torch.stack([(row - row.quantile(0.01)) / (row.quantile(0.99) - row.quantile(0.01)) for row in image])
    assert torch.allclose(scaled.double(), wanted.clamp(0, 1), atol=1e-4)


def test_other_keys_stay() -> None:
    item = {"image": torch.ones(1, 2), "label": torch.ones(1, 2)}
    assert intensity_transform("CT")(item)["label"] is item["label"]
    assert intensity_transform("MR", ["absent"], allow_missing_keys=True)(item) == item


def test_empty_name() -> None:
    with pytest.raises(ValueError, match="modality is empty"):
        intensity_transform(" ")
