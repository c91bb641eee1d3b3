# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Class counts from the file that preparation writes: the same as counting, and refused when stale."""

from __future__ import annotations

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image

from dacal_med.data import RareClassSampling, hold_out, load_datalist, read_class_counts
from dacal_med.data.class_counts import FILE_NAME, write_class_counts
from dacal_med.io.errors import InputError

SIZES = ((4, 6), (3, 5), (8, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three source labels of the values 0, 3 and 255, and their counts."""
    rng = np.random.default_rng(0)
    content: dict[str, object] = {"labels": {"0": "road", "3": "wall", "255": "ignore"}}
    counts, source = {}, []
    for index, size in enumerate(SIZES):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        label = rng.choice(np.asarray([0, 3, 3, 255], np.uint8), size)
        Image.fromarray(image).save(tmp_path / f"{index}.png")
        Image.fromarray(label).save(tmp_path / f"{index}_label.png")
        source.append({"image": f"{index}.png", "label": f"{index}_label.png"})
        named = {"road": 0, "wall": 3, "ignore": 255}
        counts[f"{index}_label.png"] = {name: int((label == value).sum()) for name, value in named.items()}
    Image.fromarray(image).save(tmp_path / "t.png")
    content |= {"source": source, "target_train": [{"image": "t.png"}]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    write_class_counts(tmp_path, counts)
    return tmp_path


def test_the_file_says_what_counting_says(folder: Path):
    datalist = load_datalist(folder)
    found = read_class_counts(datalist)
    assert found.dtype == np.int64 and found.shape == (3, 2)
    wanted = []
    for entry in datalist.source:
        label = np.asarray(Image.open(entry["label"]))
        wanted.append([(label == 0).sum(), (label == 3).sum()])
    assert found.tolist() == wanted
    (folder / FILE_NAME).unlink()
    np.testing.assert_array_equal(read_class_counts(datalist, count_missing=True), found)


def test_no_label_is_read(folder: Path):
    datalist = load_datalist(folder)
    with patch("dacal_med.data.class_counts.read_image", side_effect=AssertionError):
        assert read_class_counts(datalist, count_missing=True).shape == (3, 2)


def test_entries_choose_rows(folder: Path):
    datalist = load_datalist(folder)
    kept, held = hold_out(datalist.source, 0.34, 0)
    rows = {entry["label"]: row for entry, row in zip(datalist.source, read_class_counts(datalist), strict=True)}
    for part in (kept, held):
        wanted = [rows[entry["label"]].tolist() for entry in part]
        assert read_class_counts(datalist, part).tolist() == wanted


def test_sampling_takes_them(folder: Path):
    datalist = load_datalist(folder)
    counts = read_class_counts(datalist)
    data = [{"label": np.empty(0)}] * 3  # read never
    sampling = RareClassSampling(data, 2, min_voxels=0, temperature=0.5, counts=counts)
    share = counts.sum(0) / counts.sum()
    weights = np.exp((1 - share) / 0.5)
    np.testing.assert_allclose(sampling.probabilities, weights / weights.sum(), rtol=1e-12)


def test_a_missing_file_is_named(folder: Path):
    (folder / FILE_NAME).unlink()
    with pytest.raises(InputError, match=r"class_counts\.json: not found; wanted the counts that .*prepare"):
        read_class_counts(load_datalist(folder))


def test_a_replaced_label_is_named(folder: Path):
    Image.fromarray(np.zeros((90, 70), np.uint8)).save(folder / "1_label.png")
    with pytest.raises(InputError, match=r"made from .*1_label\.png with \d+ bytes; found \d+ bytes"):
        read_class_counts(load_datalist(folder))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"2_label.png"', '"other.png"', r"found no counts of .*2_label\.png"),
        ('"wall"', '"fence"', "found no counts of wall"),
        ('"bytes"', '"size"', r"class_counts\.json: damaged"),
        ("{", "[", r"class_counts\.json: damaged"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(folder: Path, old: str, new: str, message: str):
    path = folder / FILE_NAME
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message):
        read_class_counts(load_datalist(folder))
