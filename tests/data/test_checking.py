# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Checking a data set finds every kind of damage and names the file."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image

from dacal_med.data.checking import CheckSummary, check_data
from dacal_med.data.datalist import Datalist, load_datalist
from dacal_med.io.errors import InputError
from dacal_med.io.files import file_state
from dacal_med.io.reading import read_header, read_image

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])
SHAPE = (7, 6, 5)


def volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def labels(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    array = np.zeros(shape, np.uint8)
    array.flat[:3] = (1, 7, 7)
    return array


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("s", "t", "v"):
        volume(tmp_path / f"{name}.nii.gz", noise())
        volume(tmp_path / f"{name}_label.nii.gz", labels())
    content = {
        "labels": {"0": "background", "1": "thing", "7": "ignore"},
        "source": [{"image": "s.nii.gz", "label": "s_label.nii.gz"}],
        "target_train": [{"image": "t.nii.gz"}],
        "target_val": [{"image": "v.nii.gz", "label": "v_label.nii.gz"}],
        "modality": {"source": "MR", "target": "MR"},
    }
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    return tmp_path


def check(folder: Path, dims: int = 3, channels: int = 1, record: Path | str = "") -> CheckSummary:
    return check_data(load_datalist(folder), dims, channels, record, progress=False)


def test_counts_what_it_read(folder: Path) -> None:
    summary = check(folder)
    assert (summary.images, summary.labels) == (3, 2)
    assert summary.label_voxels == {"background": 2 * (210 - 3), "thing": 2, "ignore": 4}


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def nan(path: Path) -> None:
    array = noise()
    array[1, 2, 3] = np.nan
    array[0, 0, 0] = np.inf
    volume(path, array)


def moved(path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = 5.0
    volume(path, labels(), affine)


def strange_label(path: Path) -> None:
    array = labels()
    array[3, 3, 3] = 4
    volume(path, array)


DAMAGE: list[tuple[str, Callable[[Path], None], str]] = [
    ("t.nii.gz", halve, "cannot"),
    ("v_label.nii.gz", halve, "cannot"),
    ("s.nii.gz", lambda path: path.write_bytes(b"not an image"), "cannot be read as NIfTI"),
    ("s.nii.gz", lambda path: path.write_bytes(gzip.compress(b"not an image" * 100)), "cannot be read as NIfTI"),
    ("s.nii.gz", lambda path: path.write_bytes(b""), "cannot be read as NIfTI"),
    ("v_label.nii.gz", lambda path: volume(path, labels((7, 6, 4))), r"found shape \(7, 6, 4\); wanted \(7, 6, 5\)"),
    ("s_label.nii.gz", moved, "lies up to 5 mm away"),
    ("s_label.nii.gz", lambda path: volume(path, labels(), np.diag([1.0, -2, 3, 1])), "mm away"),
    ("s_label.nii.gz", strange_label, r"label value\(s\) \[4.0\]; wanted only \[0, 1, 7\]"),
    ("s_label.nii.gz", lambda path: volume(path, labels() * np.float32(0.5)), r"label value\(s\) \[0.5, 3.5\]"),
    ("s_label.nii.gz", lambda path: volume(path, labels((*SHAPE, 2))), "found 2 channels; wanted 1"),
    ("t.nii.gz", nan, r"found 2 voxel\(s\) that are NaN or infinite"),
    ("t.nii.gz", lambda path: volume(path, noise((*SHAPE, 2))), r"found 2 channel\(s\); wanted 1"),
    ("t.nii.gz", lambda path: volume(path, noise((7, 6))), "found 2 spatial axes"),
    ("t.nii.gz", lambda path: volume(path, noise((7, 6, 1))), "found a single slice"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_damage_is_found_and_named(folder: Path, name: str, damage: Callable[[Path], None], message: str) -> None:
    damage(folder / name)
    with pytest.raises(InputError, match=message) as error:
        check(folder)
    assert str(error.value).startswith(str(folder / name))


def test_file_that_vanished(folder: Path) -> None:
    datalist = load_datalist(folder)
    (folder / "t.nii.gz").unlink()
    with pytest.raises(InputError, match=r"t\.nii\.gz: no such file"):
        check_data(datalist, 3, 1, progress=False)


def test_headers_come_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape that is wrong in the last file is found before any voxel of the first is read."""
    volume(folder / "v_label.nii.gz", labels((7, 6, 4)))

    def refuse(path: str) -> None:
        raise AssertionError(f"read voxels of {path}")

    datalist = load_datalist(folder)
    monkeypatch.setattr("dacal_med.data.checking.read_image", refuse)
    with pytest.raises(InputError, match="found shape"):
        check_data(datalist, 3, 1, progress=False)


def test_single_precision_affines_are_equal_enough(folder: Path) -> None:
    volume(folder / "s_label.nii.gz", labels(), AFFINE * (1 + 1e-6))
    check(folder)


def test_wrong_dimensions_wanted(folder: Path) -> None:
    with pytest.raises(InputError, match=r"found 3 spatial axes, shape \(7, 6, 5\); wanted 2"):
        check(folder, dims=2)


@pytest.mark.parametrize("part", ["source", "target_train", "target_val"])
def test_a_picture_in_a_list_of_volumes(folder: Path, part: str) -> None:
    Image.fromarray(np.zeros((7, 6), np.uint8)).save(folder / "slice.png")
    content = json.loads((folder / "datalist.json").read_text())
    content[part].append({"image": "slice.png", "label": "s_label.nii.gz"})
    (folder / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"slice\.png: found 2 spatial axes.*wanted 3"):
        check(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("s", "t"):
        Image.fromarray(rng.integers(0, 255, (6, 9, 3), np.uint8)).save(tmp_path / f"{name}.jpg")
    Image.fromarray(rng.integers(0, 2, (6, 9), np.uint8)).save(tmp_path / "l.png")
    content = {
        "labels": {"0": "road", "1": "sky", "255": "void"},
        "source": [{"image": "s.jpg", "label": "l.png"}],
        "target_train": [{"image": "t.jpg"}],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    return tmp_path


def test_label_ids_in_place_of_train_ids_have_a_hint(pictures: Path) -> None:
    Image.fromarray(np.full((6, 9), 7, np.uint8)).save(pictures / "l.png")
    message = r"l\.png: found the label value\(s\) \[7\.0\]; wanted only \[0, 1, 255\]\. Does the file hold .* own ids"
    with pytest.raises(InputError, match=message):
        check(pictures, 2, 3)


def test_ignored_voxels_without_a_name_have_a_hint(pictures: Path) -> None:
    content = json.loads((pictures / "datalist.json").read_text())
    del content["labels"]["255"]
    (pictures / "datalist.json").write_text(json.dumps(content))
    Image.fromarray(np.full((6, 9), 255, np.uint8)).save(pictures / "l.png")
    with pytest.raises(InputError, match=r'datalist\.json must say so in \'labels\': \{"255": "ignore"\}'):
        check(pictures, 2, 3)


def test_values_that_are_no_classes_have_no_hint(folder: Path) -> None:
    volume(folder / "s_label.nii.gz", labels() * np.float32(0.5))
    with pytest.raises(InputError, match=r"wanted only \[0, 1, 7\]\.$"):
        check(folder)


def test_a_picture_and_its_label_of_two_sizes(pictures: Path) -> None:
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(pictures / "l.png")
    with pytest.raises(InputError, match=r"l\.png: found shape \(5, 3\); wanted \(9, 6\), that of .*s\.jpg"):
        check(pictures, 2, 3)


def test_colour_pictures(pictures: Path) -> None:
    check(pictures, 2, 3)
    with pytest.raises(InputError, match=r"s\.jpg: found 2 spatial axes.*wanted 3"):
        check(pictures, 3, 3)
    with pytest.raises(InputError, match=r"s\.jpg: found 3 channel\(s\); wanted 1"):
        check(pictures, 2, 1)
    halve(pictures / "t.jpg")
    with pytest.raises(InputError, match=r"t\.jpg: cannot"):
        check(pictures, 2, 3)


def test_colour_labels_are_refused(pictures: Path) -> None:
    Image.fromarray(np.eye(6, 9, dtype=np.uint8)[..., None].repeat(3, 2)).save(pictures / "l.png")
    check(pictures, 2, 3)
    Image.fromarray(np.eye(6, 9, dtype=np.uint8)[..., None] * np.uint8([1, 2, 3])).save(pictures / "l.png")
    with pytest.raises(InputError, match=r"l\.png: found 3 channels; wanted 1"):
        check(pictures, 2, 3)


def test_palette_labels_count_as_values(pictures: Path) -> None:
    picture = Image.fromarray(np.eye(6, 9, dtype=np.uint8), mode="P")
    picture.putpalette([0, 0, 0, 200, 10, 10] + [0] * 762)
    picture.save(pictures / "l.png")
    check(pictures, 2, 3)


def dicom_series(folder: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Axial slices as an exporter writes them, file names in another order than positions."""
    folder.mkdir(parents=True)
    image = sitk.GetImageFromArray(array)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(image.GetDepth()):
        part = image[:, :, index]
        part.SetSpacing(spacing[:2])
        for tag, value in {
            "0008|0060": "CT",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0032": f"0\\0\\{index * spacing[2]}",
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0020|0013": str(index),
            "0018|0050": str(spacing[2]),
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{index}",
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{image.GetDepth() - index:03d}.dcm"))
        writer.Execute(part)


def test_dicom_series_folder(folder: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (4, 6, 5)).astype(np.int16)
    dicom_series(folder / "series", array, (1.5, 2.0, 4.0))
    assert pydicom.dcmread(folder / "series" / "001.dcm").Modality == "CT"
    content = json.loads((folder / "datalist.json").read_text())
    content["target_train"] = [{"image": "series"}]
    content["modality"] = {"source": "MR", "target": "MR"}
    (folder / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"target: 'modality' says 'MR', .*series says 'CT'; wanted the same"):
        check(folder)
    content["modality"] = {"source": "MR"}
    (folder / "datalist.json").write_text(json.dumps(content))
    assert load_datalist(folder).modality == {"source": "MR", "target": "CT"}
    check(folder)
    image = read_image(folder / "series")
    voxels, affine = image.array, image.header.affine
    assert voxels.shape == (1, 5, 6, 4)
    assert affine is not None
    oriented = voxels[0].transpose(2, 1, 0)
    assert np.array_equal(oriented if affine[2, 2] > 0 else oriented[::-1], array)
    assert read_header(folder / "series").patient_spacing == pytest.approx((1.5, 2.0, 4.0))


def test_empty_dicom_folder(folder: Path) -> None:
    (folder / "series").mkdir()
    content = json.loads((folder / "datalist.json").read_text())
    content["target_train"] = [{"image": "series"}]
    (folder / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"{folder / 'series'}: found 0 DICOM series"):
        check(folder)


def test_nrrd_agrees_with_nifti(folder: Path) -> None:
    array = noise()
    header = {
        "space": "left-posterior-superior",
        "space directions": np.diag([1.0, 2.0, 3.0]),
        "space origin": np.array([4.0, 5.0, 6.0]),
    }
    nrrd.write(str(folder / "s.nrrd"), array, header)
    same = AFFINE.copy()
    same[:3, 3] = (-4, -5, 6)
    volume(folder / "s_label.nii.gz", labels(), same)
    image = read_image(folder / "s.nrrd")
    voxels, affine = image.array, image.header.affine
    assert np.array_equal(voxels[0], array)
    assert affine == pytest.approx(same)
    found = read_header(folder / "s.nrrd")
    assert (found.shape, found.channels) == (SHAPE, 1)
    assert found.affine == pytest.approx(same)
    content = json.loads((folder / "datalist.json").read_text())
    content["source"][0]["image"] = "s.nrrd"
    (folder / "datalist.json").write_text(json.dumps(content))
    check(folder)
    halve(folder / "s.nrrd")
    with pytest.raises(InputError, match=r"s\.nrrd: cannot"):
        check(folder)


def test_unknown_file_type(folder: Path) -> None:
    (folder / "scan.mgz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"scan\.mgz: found a file type that cannot be read; wanted NIfTI"):
        read_image(folder / "scan.mgz")


@pytest.mark.parametrize("kind", ["<i2", ">i2", "<u2", ">f4", "<f8"])
def test_every_byte_order_is_read(folder: Path, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    image = nib.Nifti1Image(array, AFFINE, nib.Nifti1Header(endianness=">" if kind[0] == ">" else "<"))
    image.set_data_dtype(np.dtype(kind))
    nib.save(image, folder / "x.nii.gz")
    assert np.array_equal(read_image(folder / "x.nii.gz").array[0], array)


@pytest.mark.parametrize(
    ("name", "dims", "channels", "images", "with_label"),
    [("sts_ct2mr", 3, 1, 51, 37), ("hippocampus_site2site", 3, 1, 160, 136), ("camvid_day2dusk", 2, 3, 261, 185)],
)
def test_real_sets_in_seconds(name: str, dims: int, channels: int, images: int, with_label: int) -> None:
    if not (SHARED / name / "datalist.json").is_file():
        pytest.skip(f"real data not found at {SHARED / name}")
    datalist: Datalist = load_datalist(SHARED / name)
    start = time.perf_counter()
    summary = check_data(datalist, dims, channels, progress=False)
    assert time.perf_counter() - start < 30
    assert (summary.images, summary.labels) == (images, with_label)
    assert all(count > 0 for count in summary.label_voxels.values())


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose voxels are read from now on."""
    seen: list[str] = []

    def spy(path: str, **options: bool):
        seen.append(Path(path).name)
        return read_image(path, **options)

    monkeypatch.setattr("dacal_med.data.checking.read_image", spy)
    return seen


def test_files_that_were_good_are_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, record = reads(monkeypatch), tmp_path / "deep [1]" / "checked [1]*.json"
    first = check(folder, record=record)
    assert len(seen) == 5
    assert check(folder, record=record) == first
    assert len(seen) == 5
    array = labels()
    array.flat[0] = 0
    volume(folder / "v_label.nii.gz", array)
    again = check(folder, record=record)
    assert seen[5:] == ["v_label.nii.gz"]
    assert again.label_voxels["thing"] == first.label_voxels["thing"] - 1
    check(folder)
    assert len(seen) == 11  # without a record everything is


def test_damage_after_the_first_check_is_found(folder: Path, tmp_path: Path) -> None:
    record = tmp_path / "checked.json"
    check(folder, record=record)
    array = noise()
    array.flat[0] = np.nan
    volume(folder / "t.nii.gz", array)
    for _ in range(2):  # nor is what is bad remembered as good
        with pytest.raises(InputError, match=r"t\.nii\.gz: found 1 voxel"):
            check(folder, record=record)


def test_what_was_good_before_an_error_is_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, bad = tmp_path / "checked.json", labels()
    bad.flat[0] = 9
    volume(folder / "v_label.nii.gz", bad)
    seen = reads(monkeypatch)
    for wanted in (5, 6):
        with pytest.raises(InputError, match=r"v_label.*\[9\.0\]"):
            check(folder, record=record)
        assert len(seen) == wanted


def test_values_that_the_datalist_no_longer_names_are_found(folder: Path, tmp_path: Path) -> None:
    record = tmp_path / "checked.json"
    check(folder, record=record)
    content = json.loads((folder / "datalist.json").read_text())
    content["labels"] = {"0": "background", "1": "thing"}
    (folder / "datalist.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"s_label.*\[7\.0\]"):
        check(folder, record=record)


def test_a_label_that_was_seen_as_an_image_is_checked_all_the_same(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "datalist.json").read_text())
    content["source"][0]["label"] = "t.nii.gz"
    content["target_val"].append({"image": "v_label.nii.gz", "label": "t.nii.gz"})
    (folder / "datalist.json").write_text(json.dumps(content))
    record = tmp_path / "checked.json"
    for _ in range(2):
        with pytest.raises(InputError, match=r"t\.nii\.gz: found the label value"):
            check(folder, record=record)
    content["source"][0]["label"] = content["target_val"][1]["label"] = "s_label.nii.gz"
    content["target_train"][0]["image"] = "s_label.nii.gz"  # the other way round: read as a label before
    (folder / "datalist.json").write_text(json.dumps(content))
    summary = check(folder, record=record)
    assert (summary.images, summary.labels) == (4, 3)
    assert sum(summary.label_voxels.values()) == 3 * noise().size


BROKEN_LABELS = [
    '[["x"]]',
    '[[0, "y"]]',
    "[[0]]",
    "[3]",
    "[[null, 1]]",
    "[[0, Infinity]]",
    "[[0, 1.5]]",
    "[[0, -1]]",
    "3",
]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"format": 2}',
        '{"format": 2, "images": {"a": 3}, "labels": {}}',
        '{"format": 2, "images": {"a": [[1]]}, "labels": {}}',
        '{"format": 2, "images": {}, "labels": {"a": 3}}',
        *(f'{{"format": 2, "images": {{}}, "labels": {{"NAME": [STATE, {counts}]}}}}' for counts in BROKEN_LABELS),
        '{"format": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"format": ' + "9" * 5000 + "}",
    ],
    ids=lambda content: content[:60],
)
def test_a_record_that_cannot_be_read_is_made_anew(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    record, seen = tmp_path / "checked.json", reads(monkeypatch)
    label = folder / "s_label.nii.gz"
    record.write_text(content.replace("NAME", str(label)).replace("STATE", json.dumps(file_state(label))))
    with pytest.warns(UserWarning, match=r"checked\.json: cannot be read"):
        check(folder, record=record)
    check(folder, record=record)
    assert len(seen) == 5


def test_a_record_of_another_format_counts_for_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, seen = tmp_path / "checked.json", reads(monkeypatch)
    check(folder, record=record)
    record.write_text(record.read_text().replace('"format": 2', '"format": 1'))
    check(folder, record=record)
    assert len(seen) == 10


def test_each_rank_reads_its_share_and_uses_all_records(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, seen = tmp_path / "checked.json", reads(monkeypatch)
    monkeypatch.setattr("ignite.distributed.get_world_size", lambda: 2)
    for rank, wanted in ((0, ["s.nii.gz", "s_label.nii.gz", "v.nii.gz", "v_label.nii.gz"]), (1, ["t.nii.gz"])):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda rank=rank: rank)
        del seen[:]
        summary = check(folder, record=record)
        assert seen == wanted
        assert summary.images == 2 - rank
    assert sorted(path.name for path in tmp_path.glob("checked*")) == ["checked-1.json", "checked.json"]
    monkeypatch.undo()
    seen = reads(monkeypatch)
    assert check(folder, record=record).images == 3
    assert not seen


def test_a_long_check_writes_on_the_way(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, now = tmp_path / "checked.json", iter(range(0, 10_000, 20))
    monkeypatch.setattr("dacal_med.data.checked.time.monotonic", lambda: next(now))
    kept: list[int] = []

    def files() -> int:
        content = json.loads(record.read_text())
        return len(content["images"]) + len(content["labels"])

    def spy(path: str, **options: bool):
        kept.append(files() if record.exists() else 0)
        return read_image(path, **options)

    monkeypatch.setattr("dacal_med.data.checking.read_image", spy)
    check(folder, record=record)
    assert 0 < max(kept) < 5
    assert files() == 5


def test_a_record_that_cannot_be_written_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/checked\.json"):
        check(folder, record=tmp_path / "file" / "checked.json")
    with pytest.raises(InputError, match=r"checked: found the path 'xxx"):
        check(folder, record="x" * 5000)
