# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""File values to channels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.data import MetaTensor

from dacal_med.io.errors import InputError
from dacal_med.transforms.labels import LabelsToChannelsd


@given(
    values=st.lists(st.integers(-5, 900), min_size=2, max_size=9, unique=True),
    ignored=st.integers(0, 2),
    dtype=st.sampled_from([torch.int16, torch.int32, torch.float32]),
    seed=st.integers(0, 99),
)
def test_maps_by_position(values: list[int], ignored: int, dtype: torch.dtype, seed: int) -> None:
    """Also when a value of the file is another one's channel, so that mapping in place would chain."""
    ignored = min(ignored, len(values) - 1)
    channels, ignore = values[ignored:], values[:ignored]
    index = torch.randint(0, len(values), (1, 6, 5), generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor(values)[index].to(dtype)
    mapped = LabelsToChannelsd("label", channels, ignore)({"label": labels})["label"]
    assert mapped.dtype == torch.uint8
    assert mapped.tolist() == torch.where(index < ignored, 255, index - ignored).tolist()


def test_keeps_metadata_input_and_other_keys() -> None:
    labels = MetaTensor(torch.tensor([[0.0, 7.0]]), meta={"filename_or_obj": "x.nii.gz"})
    item = {"label": labels, "image": torch.ones(1, 2)}
    mapped = LabelsToChannelsd("label", (0, 7))(item)
    assert mapped["label"].meta["filename_or_obj"] == "x.nii.gz"
    assert mapped["image"] is item["image"]
    assert item["label"].tolist() == [[0.0, 7.0]]


def test_arrays() -> None:
    mapped = LabelsToChannelsd("label", (3, 1), (9,))({"label": np.array([[1, 3, 9]])})["label"]
    assert np.asarray(mapped).tolist() == [[1, 0, 255]]


def test_names_the_file_of_a_strange_value() -> None:
    labels = MetaTensor(torch.tensor([[0.0, 7.0, 4.0, 0.5]]), meta={"filename_or_obj": "/data/x.nii.gz"})
    with pytest.raises(
        InputError, match=r"/data/x\.nii\.gz: found the label value\(s\) \[0.5, 4.0\]; wanted only \[0, 7\]"
    ):
        LabelsToChannelsd("label", (0, 7))({"label": labels})
    with pytest.raises(InputError, match="label: found"):
        LabelsToChannelsd("label", (0, 7))({"label": torch.tensor([[2]])})


def test_missing_keys() -> None:
    assert LabelsToChannelsd("label", (0, 1), allow_missing_keys=True)({"image": 1}) == {"image": 1}
    with pytest.raises(KeyError, match="label"):
        LabelsToChannelsd("label", (0, 1))({"image": 1})


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="repeat"):
        LabelsToChannelsd("label", (0, 1), (1,))
    with pytest.raises(ValueError, match="0 channels"):
        LabelsToChannelsd("label", ())
