# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The phantom: the same every time, complete or absent, and an abdomen."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import label as components

from dacal_med.data.checking import check_data
from dacal_med.data.datalist import load_datalist
from dacal_med.data.phantom import ensure_phantom
from dacal_med.io.errors import InputError

SMALL = {"num_source": 3, "num_target_train": 1, "num_target_val": 3}
TINY = {"num_source": 1, "num_target_train": 1, "num_target_val": 0, "image_size": (18, 14, 10), "spacing_mm": 20.0}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(ensure_phantom(tmp_path_factory.mktemp("data") / "phantom", **SMALL))


def voxels(path: str) -> np.ndarray:
    return np.asanyarray(nib.load(path).dataobj)


def digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.nii.gz")):
        total.update(path.name.encode() + voxels(str(path)).tobytes() + nib.load(path).affine.tobytes())
    return total.hexdigest()


def _make(folder: str) -> str:
    return ensure_phantom(folder, **TINY)


def test_is_a_valid_data_set(phantom: Path) -> None:
    datalist = load_datalist(phantom)
    assert datalist.class_names == ("background", "liver", "spleen", "left kidney", "right kidney")
    assert datalist.modality == {"source": "CT", "target": "MR"}
    assert datalist.working_spacing(3) == (5.0, 5.0, 5.0)
    summary = check_data(datalist, spatial_dims=3, in_channels=1, progress=False)
    assert (summary.images, summary.labels) == (7, 6)
    assert not list(phantom.glob("*/labels/mr_000*"))  # the target to train on has no label anywhere


def test_same_seed_same_voxels_other_seed_other_voxels(tmp_path: Path) -> None:
    first, again = (Path(ensure_phantom(tmp_path / name, **TINY)) for name in ("a", "b"))
    other = Path(ensure_phantom(tmp_path / "c", seed=1, **TINY))
    assert digest(first) == digest(again) != digest(other)


def test_every_anatomy_is_another_one(phantom: Path) -> None:
    labels = [voxels(str(path)).tobytes() for path in sorted(phantom.glob("*/labels/*.nii.gz"))]
    assert len(set(labels)) == len(labels) == 6


def test_every_organ_is_there_and_mostly_whole(phantom: Path) -> None:
    for path in sorted(phantom.glob("*/labels/*.nii.gz")):
        image = nib.load(path)
        array = np.asanyarray(image.dataobj)
        litres = np.bincount(array.ravel(), minlength=5) * abs(np.linalg.det(image.affine[:3, :3])) / 1e6
        assert 0.6 < litres[1] < 2.5, path.name
        assert all(0.03 < volume < 0.5 for volume in litres[2:]), path.name
        for value in range(1, 5):
            pieces, _ = components(array == value)
            assert np.bincount(pieces.ravel())[1:].max() > 0.8 * (array == value).sum(), (path.name, value)


def test_sides_follow_the_affine(phantom: Path) -> None:
    for path in sorted(phantom.glob("*/labels/*.nii.gz")):
        image = nib.load(path)
        array = np.asanyarray(image.dataobj)
        right = [nib.affines.apply_affine(image.affine, np.argwhere(array == v)).mean(0)[0] for v in range(1, 5)]
        assert right[0] > right[1] + 50, "the liver lies to the right of the spleen"
        assert right[3] > right[2] + 50, "right kidney to the right of the left one"


def test_scanners_differ_as_real_ones_do(phantom: Path) -> None:
    datalist = load_datalist(phantom)
    for entry in datalist.source:
        image = nib.load(entry["image"])
        array, labels = voxels(entry["image"]), voxels(entry["label"])
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert array.dtype == np.int16
        assert array.min() < -950
        means = [array[labels == value].mean() for value in range(1, 5)]
        assert means[0] == pytest.approx(105, abs=40)
        assert min(means[2:]) > means[0]
    for entry in datalist.target_val:
        image = nib.load(entry["image"])
        array = voxels(entry["image"])
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert np.count_nonzero(image.affine[:3, :3]) == 9  # oblique
        assert array.dtype == np.float32
        assert array.min() >= 0.0


def test_contrast_changes_its_order(phantom: Path) -> None:
    """Fat is the darkest soft tissue of CT and brighter than muscle in MR: seen in the rim around the body."""
    datalist = load_datalist(phantom)

    def rim_over_liver(entry: dict[str, str], threshold: float) -> float:
        array, labels = voxels(entry["image"]).astype(float), voxels(entry["label"])
        middle = array.shape[1] // 2
        line = array[:, middle, array.shape[2] // 2]
        inside = np.flatnonzero(line > threshold)
        return float(np.mean([line[inside[0] + 1], line[inside[-1] - 1]]) - array[labels == 1].mean())

    assert all(rim_over_liver(entry, -400) < -80 for entry in datalist.source)
    assert np.mean([rim_over_liver(entry, 100) for entry in datalist.target_val]) > 0


def test_second_call_changes_nothing(phantom: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in phantom.rglob("*")}
    assert ensure_phantom(phantom, **SMALL) == str(phantom)
    assert {path: path.stat().st_mtime_ns for path in phantom.rglob("*")} == before


def test_other_parameters_are_refused(phantom: Path) -> None:
    with pytest.raises(InputError, match=r"holds a phantom made with .*'seed': 0.*wanted .*'seed': 3"):
        ensure_phantom(phantom, seed=3, **SMALL)


def test_someone_elses_folder_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{tmp_path}: exists but holds no complete phantom"):
        ensure_phantom(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_spoilt_notes_are_refused(tmp_path: Path) -> None:
    folder = Path(ensure_phantom(tmp_path / "p", **TINY))
    (folder / "phantom.json").write_text("{")
    with pytest.raises(InputError, match=r"phantom\.json: not valid JSON"):
        ensure_phantom(folder, **TINY)


def test_empty_folder_is_filled_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    ensure_phantom(tmp_path / "p", **TINY)
    assert json.loads((tmp_path / "p" / "phantom.json").read_text())["image_size"] == [18, 14, 10]
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("dacal_med.data.phantom.nib.save", fail)
    with pytest.raises(OSError, match="disk full"):
        ensure_phantom(tmp_path / "p", **TINY)
    assert not list(tmp_path.iterdir())


def test_concurrent_callers_agree(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_make, [str(folder)] * 3)) == [str(folder)] * 3
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert digest(folder) == digest(Path(ensure_phantom(tmp_path / "alone", **TINY)))


@pytest.mark.parametrize(
    "wrong", [{"image_size": (18, 14)}, {"image_size": (4, 14, 10)}, {"num_source": 0}, {"spacing_mm": 0.0}]
)
def test_wrong_calls(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="wanted three sizes"):
        ensure_phantom(tmp_path / "p", **(TINY | wrong))
