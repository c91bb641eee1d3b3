# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Decoded images in memory reach loading processes in one piece, whatever their number."""

from __future__ import annotations

import pickle
from collections import namedtuple
from copy import deepcopy
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Lambdad, Transform
from torch.utils.data import DataLoader

from dacal_med.data import in_memory
from dacal_med.data.in_memory import MemoryDataset
from dacal_med.data.loading_process import starting_processes

COUNT = 400  # more files than a `forkserver` takes


def item_of(number: int) -> dict[str, object]:
    image = torch.full((1, 3, 2 + number % 3), float(number))
    return {"image": image, "label": torch.full((1, 2), number % 256, dtype=torch.uint8), "group": f"g{number % 2}"}


class Decode(Transform):
    """From an entry to an item."""

    def __call__(self, number: int) -> dict[str, object]:
        return item_of(number)


def dataset(count: int = COUNT, rate: float = 1.0) -> MemoryDataset:
    return MemoryDataset(list(range(count)), Compose([Decode()]), cache_rate=rate, progress=False)


def same(found, wanted) -> bool:
    if found.keys() != wanted.keys() or found["group"] != wanted["group"]:
        return False
    return all(torch.equal(found[k], wanted[k]) and found[k].dtype == wanted[k].dtype for k in ("image", "label"))


@pytest.mark.parametrize("rate", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("room", [True, False])
def test_what_arrives_is_what_was_there(rate, room, monkeypatch):
    if not room:
        usage = namedtuple("usage", "free")
        monkeypatch.setattr(in_memory.shutil, "disk_usage", lambda _: usage(0))
    here = dataset(20, rate)
    for _ in range(2):  # a second process gets the same
        there = pickle.loads(ForkingPickler.dumps(here))
        assert all(same(there[n], item_of(n)) and same(here[n], item_of(n)) for n in range(20))
    if rate == 1.0:
        pieces = there._packed[0]
        assert set(pieces) == {torch.float32, torch.uint8}
        assert pieces[torch.float32].is_shared() == room
        # One piece, of which items are copies: no change of one reaches another, and no copy has all of it.
        there[3]["image"].zero_()
        assert same(there[3], item_of(3))
        assert deepcopy(there[3]["image"]).untyped_storage().nbytes() == item_of(3)["image"].nbytes


def test_pieces_are_passed_and_not_the_items():
    sizes = [len(ForkingPickler.dumps(dataset(count))) for count in (100, 200)]
    assert sizes[1] - sizes[0] < 100 * 600  # places and names alone


def test_tensors_with_meta_data_keep_it():
    data = [{"image": MetaTensor(torch.ones(1, 2), meta={"filename_or_obj": "a.nii"}), "label": torch.zeros(1, 2)}]
    there = pickle.loads(ForkingPickler.dumps(MemoryDataset(data, Compose([]), progress=False)))
    assert there[0]["image"].meta["filename_or_obj"] == "a.nii"
    assert torch.equal(there[0]["label"], torch.zeros(1, 2))


def test_transforms_of_the_data_set_itself_do_not_reach_the_cache():
    noise = Lambdad("image", lambda image: image.add_(torch.ones(())))
    data = MemoryDataset([item_of(1)], Compose([noise]), progress=False)
    assert torch.equal(data[0]["image"], data[0]["image"])


def first(items):
    return items[0]


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_hundreds_of_images(method):
    loader = DataLoader(dataset(), num_workers=1, collate_fn=first, multiprocessing_context=method)
    with starting_processes():
        items = iter(loader)
    assert all(same(found, item_of(n)) for n, found in enumerate(items))
