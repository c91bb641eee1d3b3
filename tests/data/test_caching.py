# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Where decoded images are kept: by their size, with the same draws wherever it is, never stale, never half-written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import Dataset
from monai.transforms import (
    Compose,
    EnsureTyped,
    LoadImaged,
    Orientationd,
    RandShiftIntensityd,
    RandSpatialCropd,
    ScaleIntensityRanged,
    Spacingd,
    SpatialPadd,
)

from dacal_med.data import Caching, Datalist, PairedDataset, PairedLoader, load_datalist, make_dataset
from dacal_med.data import caching as module
from dacal_med.data.caching import KINDS, DiskDataset
from dacal_med.data.in_memory import MemoryDataset
from dacal_med.io.errors import InputError

SHAPE = (6, 5, 4)
SIZES = (3, 2, 1)  # source, target_train, target_val


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small data set of volumes with 2 mm voxels."""
    rng = np.random.default_rng(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    content: dict[str, Any] = {"labels": {"0": "background", "1": "thing"}}
    for key, count in zip(("source", "target_train", "target_val"), SIZES, strict=True):
        content[key] = []
        for index in range(count):
            entry = {"image": f"{key}{index}.nii.gz"}
            nib.save(nib.Nifti1Image(rng.random(SHAPE, dtype=np.float32), affine), tmp_path / entry["image"])
            if key != "target_train":
                entry["label"] = f"{key}{index}_label.nii.gz"
                label = rng.integers(0, 2, SHAPE).astype(np.uint8)
                nib.save(nib.Nifti1Image(label, affine), tmp_path / entry["label"])
            content[key].append(entry)
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def datalist(folder: Path) -> Datalist:
    return load_datalist(folder)


def transforms(keys=("image", "label"), low: float = 0.0, typed: bool = True) -> Compose:
    """As the bundles have them."""
    steps = [
        LoadImaged(keys, ensure_channel_first=True, image_only=True),
        Orientationd(keys, axcodes="RAS", labels=None),
        Spacingd(keys, pixdim=(1.5, 2.0, 2.0), mode=("bilinear", "nearest")[: len(keys)]),
        ScaleIntensityRanged("image", low, 1.0, 0.0, 1.0),
        SpatialPadd(keys, (8, 8, 8)),
    ]
    return Compose([*steps, *([EnsureTyped(keys, track_meta=False)] if typed else [])])


def bytes_of(voxels: int) -> int:
    """Of the whole data set, each image with so many voxels."""
    return voxels * (4 * sum(SIZES) + SIZES[0] + SIZES[2])


# The rule


@pytest.mark.parametrize(
    ("options", "voxels"),
    [
        ({}, 120),
        ({"spacing": (1.0, 2.0, 4.0)}, 120),  # 12 x 5 x 2
        ({"spacing": (1.0, 1.0, 1.0)}, 960),
        ({"spacing": (1.0, 1.0, 1.0), "smallest": (10, 10, 10)}, 1000),
        ({"smallest": (4, 4, 4)}, 120),
    ],
)
def test_the_size_follows_from_the_headers(datalist, options, voxels):
    assert Caching(datalist, **options).decoded_bytes == bytes_of(voxels)


def test_the_size_is_about_what_the_cache_takes(datalist):
    options = {"spacing": (1.5, 2.0, 2.0), "smallest": (8, 8, 8)}
    items = [item for data in (datalist.source, datalist.target_val) for item in Dataset(data, transforms())]
    items += list(Dataset(datalist.target_train, transforms(("image",))))
    images = sum(item["image"].nbytes for item in items)
    labels = sum(item["label"].numel() for item in items if "label" in item)
    assert Caching(datalist, **options).decoded_bytes == images + labels


def test_large_lists_are_sampled(datalist, monkeypatch):
    many = Datalist(**{**vars(datalist), "source": datalist.source * 100})
    read, header = [], module.read_header
    monkeypatch.setattr(module, "read_header", lambda path: read.append(path) or header(path))
    assert Caching(many).decoded_bytes == 120 * (5 * 300 + 4 * 2 + 5)
    assert len(read) <= 40


@pytest.mark.parametrize(
    ("memory", "free", "wanted"),
    [
        (bytes_of(120), 0, ("memory", 1.0)),
        (bytes_of(120) - 1, 2 * bytes_of(120), ("disk", 0.0)),
        (bytes_of(120) // 2, 2 * bytes_of(120) - 1, ("memory", 0.5)),
        (0, 0, ("memory", 0.0)),
    ],
)
def test_memory_then_disk_then_a_share(datalist, tmp_path, monkeypatch, memory, free, wanted):
    asked = []
    usage = type("Usage", (), {"free": free})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda place: asked.append(place) or usage)
    caching = Caching(datalist, folder=tmp_path / "not" / "yet", memory=memory)
    assert caching.chosen == wanted
    assert set(asked) <= {tmp_path}
    assert not (tmp_path / "not").exists()


def test_half_of_the_available_memory_divided_among_processes(datalist, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 40}))
    for available, processes, wanted in (
        (2 * bytes_of(120), "1", "memory"),
        (2 * bytes_of(120) - 2, "1", "disk"),
        (4 * bytes_of(120), "2", "memory"),
        (4 * bytes_of(120) - 4, "2", "disk"),
    ):
        found = type("Memory", (), {"available": available})
        monkeypatch.setattr(module.psutil, "virtual_memory", lambda found=found: found)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert Caching(datalist, folder=tmp_path).chosen[0] == wanted


@pytest.mark.parametrize(("kind", "cls"), [("memory", MemoryDataset), ("disk", DiskDataset), ("none", Dataset)])
def test_each_kind_can_be_forced(datalist, tmp_path, kind, cls):
    caching = Caching(datalist, kind, tmp_path / "cache", memory=0)
    data = make_dataset(datalist.source, transforms(), caching)
    assert type(data) is cls and len(data) == SIZES[0]
    assert (tmp_path / "cache").exists() is False  # until an item is asked for


def test_a_share_in_memory(datalist, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    data = make_dataset(datalist.source, transforms(), Caching(datalist, memory=bytes_of(120) * 2 // 3 + 1))
    assert type(data) is MemoryDataset and data.cache_num == 2 and len(data) == 3


def test_unknown_kinds_are_refused(datalist):
    with pytest.raises(InputError, match="cache: found 'smart'; wanted one of auto, memory, disk, none"):
        Caching(datalist, "smart")


# The same draws


def draws(datalist: Datalist, folder: Path, kind: str, start: int = 0, workers: int = 0, memory=None) -> list[Any]:
    """Four batches of the paired loader, from an iteration on."""
    caching = Caching(datalist, kind, folder, memory=memory)
    crop = [
        RandSpatialCropd("image", (4, 4, 4), random_size=False),
        RandShiftIntensityd("image", 0.4, prob=1.0),
    ]
    paired = PairedDataset(
        make_dataset(datalist.source[:2], transforms(), caching),
        make_dataset(datalist.target_train, transforms(("image",)), caching),
        make_dataset(datalist.source[2:], transforms(), caching),
        source_transform=Compose(crop),
        target_transform=Compose(crop),
        seed=3,
    )
    loader = PairedLoader(paired, batch_size=2, num_workers=workers)
    loader.start_at(start)
    batches = iter(loader)
    return [next(batches) for _ in range(4)]


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    for batch, other in zip(found, wanted, strict=True):
        assert batch.keys() == other.keys() == {"source", "target", "held_out"}
        for domain, item in batch.items():
            assert item.keys() == other[domain].keys()
            for key, value in item.items():
                assert value.dtype == other[domain][key].dtype
                assert torch.equal(value, other[domain][key]), (domain, key)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_the_kind_nor_on_when_they_are_made(datalist, tmp_path, kind):
    wanted = draws(datalist, tmp_path / "a", "none")
    assert not torch.equal(wanted[0]["source"]["image"], wanted[1]["source"]["image"])
    for _ in range(2):  # the second time from the files, where there are some
        assert_equal(draws(datalist, tmp_path / "b", kind), wanted)
    assert_equal(draws(datalist, tmp_path / "b", kind, start=2)[:2], wanted[2:])


def test_draws_of_a_share_in_memory_are_the_same(datalist, tmp_path, monkeypatch):
    wanted = draws(datalist, tmp_path, "none")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 0}))
    assert_equal(draws(datalist, tmp_path, "auto", memory=bytes_of(120) // 2), wanted)


def test_loading_processes_share_the_files(datalist, tmp_path):
    wanted = draws(datalist, tmp_path / "a", "none")
    assert_equal(draws(datalist, tmp_path / "b", "disk", workers=2), wanted)
    assert len(list((tmp_path / "b").iterdir())) == 5


# Files on disk


def test_files_hold_plain_tensors_and_load_without_code(datalist, tmp_path):
    data = DiskDataset([{**datalist.source[0], "group": "scanner A"}], transforms(typed=False), tmp_path / "cache")
    first = data[0]
    (file,) = (tmp_path / "cache").iterdir()
    stored = torch.load(file, weights_only=True)
    assert stored.keys() == first.keys() == {"image", "label", "group"}
    assert {key: type(value) for key, value in stored.items()} == {
        "image": torch.Tensor,
        "label": torch.Tensor,
        "group": str,
    }
    assert torch.equal(stored["image"], first["image"]) and torch.equal(data[0]["label"], first["label"])
    assert file.stat().st_size < 2 * (stored["image"].nbytes + stored["label"].nbytes) + 4096


@pytest.mark.parametrize("kind", ["memory", "disk", "none"])
def test_patients_are_not_in_the_items(datalist, tmp_path, kind):
    entries = [{**datalist.source[0], "patient": "p"}, datalist.source[1]]
    data = make_dataset(entries, transforms(), Caching(datalist, kind, tmp_path / "cache"))
    assert [set(data[index]) for index in range(2)] == [{"image", "label"}] * 2


def test_an_item_is_decoded_once(datalist, tmp_path):
    data = DiskDataset(datalist.source, transforms(), tmp_path / "cache")
    wanted = [data[index] for index in range(len(data))]
    again = DiskDataset(datalist.source, transforms(), tmp_path / "cache")
    again._pre_transform = None  # calling it would fail
    for index, item in enumerate(wanted):
        assert torch.equal(again[index]["image"], item["image"])


def test_what_is_stale_is_not_read(datalist, tmp_path):
    """Another setting of a transform, another file of the same name, another entry: another file of the cache."""
    entry, cache = datalist.source[0], tmp_path / "cache"
    first = DiskDataset([entry], transforms(), cache)
    other = DiskDataset([entry], transforms(low=-1.0), cache)
    assert not torch.equal(first[0]["image"], other[0]["image"])
    assert torch.equal(other[0]["image"], Dataset([entry], transforms(low=-1.0))[0]["image"])
    before = first[0]["image"]
    image = nib.load(entry["image"])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1].copy(), image.affine), entry["image"])
    os.utime(entry["image"], ns=(1, 1))
    assert not torch.equal(first[0]["image"], before)
    assert torch.equal(first[0]["image"], Dataset([entry], transforms())[0]["image"])
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"cos\nsystem\n(S'true'\ntR."])
def test_a_damaged_file_is_made_anew(datalist, tmp_path, damage):
    data = DiskDataset(datalist.source[:1], transforms(), tmp_path / "cache")
    wanted = data[0]
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match=r"cannot be read \(\w+\); decoded anew"):
        found = data[0]
    assert torch.equal(found["image"], wanted["image"])
    assert torch.equal(torch.load(file, weights_only=True)["image"], wanted["image"])


def test_a_failed_write_leaves_nothing(datalist, tmp_path, monkeypatch):
    data = DiskDataset(datalist.source[:1], transforms(), tmp_path / "cache")

    def fail(item: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.torch, "save", fail)
    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        data[0]
    assert list((tmp_path / "cache").iterdir()) == []
