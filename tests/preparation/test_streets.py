# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Street scenes in the layouts of GTA5, SYNTHIA, Cityscapes, ACDC and Dark Zurich, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from cityscapesscripts.helpers.labels import id2label, name2label
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dacal_med.cli import main
from dacal_med.data.checking import check_data
from dacal_med.data.class_counts import read_class_counts
from dacal_med.data.datalist import load_datalist
from dacal_med.data.street_labels import STREET_LABELS, TRAIN_NAMES
from dacal_med.io.errors import InputError
from dacal_med.preparation.sets import street_tables as tables
from dacal_med.preparation.sets.street_owners import CONDITIONS
from tests.preparation.builders import checked, hashes, made, values_of

SIZE = (6, 8)  # rows, columns
PALETTE = [channel for label in STREET_LABELS for channel in label.colour]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(array).save(path)
    return path


def ids(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Every label id of Cityscapes at least once."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.resize(np.arange(34, dtype=np.uint8), size[0] * size[1])).reshape(size)


def save(path: Path, array: np.ndarray, palette: list[int] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Image.fromarray(array)
    if palette is not None:
        file.putpalette(palette)
    file.save(path)


def train_ids(array: np.ndarray) -> np.ndarray:
    """Train ids as cityscapesScripts has them."""
    return np.vectorize(lambda value: id2label[int(value)].trainId)(array).astype(np.uint8)


def rows_of(path: str) -> np.ndarray:
    return values_of(path).T  # pictures are read with their axes swapped


def gta5(root: Path, count: int = 2) -> Path:
    for number in range(1, count + 1):
        picture(root / "images" / f"{number:05d}.png", number)
        save(root / "labels" / f"{number:05d}.png", ids(number), PALETTE)
    return root


def synthia_label(path: Path, classes: np.ndarray, channels: int = 3, dtype: type = np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((*classes.shape, channels), dtype)
    array[..., 0] = classes
    if channels > 1:
        array[..., 1] = 700  # an instance number, which 8 bits do not hold
    sitk.WriteImage(sitk.GetImageFromArray(array if channels > 1 else array[..., 0], isVector=channels > 1), str(path))


def synthia_ids(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.permuted(np.resize(np.arange(23, dtype=np.uint16), SIZE[0] * SIZE[1])).reshape(SIZE)


def synthia(root: Path, count: int = 2, channels: int = 3) -> Path:
    for number in range(count):
        picture(root / "RAND_CITYSCAPES" / "RGB" / f"{number:07d}.png", number)
        path = root / "RAND_CITYSCAPES" / "GT" / "LABELS" / f"{number:07d}.png"
        synthia_label(path, synthia_ids(number), channels)
    return root


def cityscapes(root: Path) -> Path:
    for split, cities in (("train", ("aachen", "monchengladbach", "ulm")), ("val", ("frankfurt",))):
        for number, city in enumerate(cities):
            stem = f"{split}/{city}/{city}_{number:06d}_000019"
            picture(root / f"leftImg8bit/{stem}_leftImg8bit.png", number)
            save(root / f"gtFine/{stem}_gtFine_labelIds.png", ids(number))
            save(root / f"gtFine/{stem}_gtFine_color.png", np.zeros((*SIZE, 3), np.uint8))
    return root


def acdc(root: Path) -> Path:
    for number, condition in enumerate(CONDITIONS):
        for split, frame in (("train", 41), ("val", 58)):
            stem = f"GOPR0475/GOPR0475_frame_{frame:06d}"
            picture(root / f"rgb_anon/{condition}/{split}/{stem}_rgb_anon.png", number)
            picture(root / f"rgb_anon/{condition}/{split}_ref/{stem}_rgb_ref_anon.png", 10 + number)
            save(root / f"gt/{condition}/{split}/{stem}_gt_labelIds.png", ids(number))
            save(root / f"gt/{condition}/{split}/{stem}_gt_labelTrainIds.png", train_ids(ids(number)))
    return root


def dark_zurich(root: Path) -> Path:
    for split, recording, frame in (("train", "GOPR0351", 1), ("val", "GOPR0356", 321)):
        stem = f"{split}/night/{recording}/{recording}_frame_{frame:06d}"
        picture(root / f"rgb_anon/{stem}_rgb_anon.png", frame)
        picture(root / f"rgb_anon/train/day/GOPR0345/GOPR0345_frame_{frame:06d}_rgb_anon.png", frame)
        if split == "val":
            save(root / f"gt/{stem}_gt_labelIds.png", ids(frame))
    return root


# Tables


@pytest.mark.parametrize("label", STREET_LABELS, ids=lambda label: label.name)
def test_label_ids_become_train_ids(label):
    wanted = id2label[label.id].trainId
    for plates in (False, True):
        table = tables.street_table(plates=plates)
        assert table.remap(np.asarray([label.id], np.uint8), "file").tolist() == [wanted]
    assert table.names[wanted] == (id2label[label.id].name if wanted != 255 else "ignore")


def test_license_plates_of_gta5_are_ignored():
    assert tables.street_table(plates=True).remap(np.asarray([34], np.uint8), "file").tolist() == [255]
    with pytest.raises(InputError, match=r"\[34\.0\]"):
        tables.street_table().remap(np.asarray([34], np.uint8), "file")


def test_colours_are_those_of_cityscapesscripts():
    by_colour: dict[tuple[int, int, int], list[str]] = {}
    for label in id2label.values():
        by_colour.setdefault(label.color, []).append(label.name)
    found = tables.colour_ids()
    for colour, names in by_colour.items():
        learnt = [name for name in names if name2label[name].trainId not in (255, -1)]
        if learnt:
            assert [id2label[found[colour]].name] == learnt
        else:
            assert id2label[found[colour]].trainId == 255
    assert set(found) == {*by_colour, (20, 20, 20)}


# Ids by the README of SYNTHIA-RAND-CITYSCAPES, as public code of several groups has them.
SYNTHIA_TRAIN_IDS = {
    **{3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 16: 9, 1: 10, 10: 11, 17: 12, 8: 13, 18: 14, 19: 15},
    **{20: 16, 12: 17, 11: 18},
}


@pytest.mark.parametrize("value", range(23))
def test_ids_of_synthia_become_train_ids(value: int):
    wanted = SYNTHIA_TRAIN_IDS.get(value, 255)

    def remapped(classes: tuple[str, ...]) -> int:
        return int(tables.synthia_table(classes).remap(np.asarray([value], np.uint16), "file")[0])

    assert remapped(TRAIN_NAMES) == wanted
    assert remapped(tables.SYNTHIA_16) == (255 if wanted in (9, 14, 16) else wanted)
    assert remapped(tables.SYNTHIA_13) == (255 if wanted in (9, 14, 16, 3, 4, 5) else wanted)


def test_classes_of_synthia():
    assert len(tables.SYNTHIA_16) == 16 and len(tables.SYNTHIA_13) == 13
    for classes in (tables.SYNTHIA_16, tables.SYNTHIA_13):
        source, target = tables.synthia_table(classes), tables.street_table(classes)
        assert source.names == target.names
        assert [name for name in source.names.values() if name != "ignore"] == list(classes)


# Reading


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 33), min_size=1, max_size=40))
def test_labels_of_gta5_read_the_same_however_stored(tmp_path_factory: pytest.TempPathFactory, values: list[int]):
    folder = tmp_path_factory.mktemp("gta")
    array = np.asarray([values], np.uint8)
    colours = np.asarray([[id2label[value].color for value in values]], np.uint8)
    save(folder / "ids.png", array)
    save(folder / "wide.png", array.astype(np.uint16))
    save(folder / "palette.png", array, PALETTE)
    save(folder / "colours.png", colours)
    Image.fromarray(colours).quantize(64).save(folder / "other.png")
    table = tables.street_table(plates=True)
    wanted = train_ids(array)
    groups = np.where(array == 18, 5, wanted)  # groups of poles have the colour of a pole
    for name, expected in (("ids", wanted), ("wide", wanted), ("palette", wanted), ("colours", groups)):
        found = table.remap(tables.read_gta_labels(folder / f"{name}.png").array, name)
        assert found.tolist() == expected.tolist(), name
    with Image.open(folder / "other.png") as other:
        exact = np.array_equal(np.asarray(other.convert("RGB")), colours)
    if exact:
        found = table.remap(tables.read_gta_labels(folder / "other.png").array, "other")
        assert found.tolist() == groups.tolist()


def test_palettes_may_give_void_any_colour(tmp_path: Path):
    changed = list(PALETTE)
    changed[4 * 3 : 4 * 3 + 3] = 9, 9, 9
    save(tmp_path / "a.png", ids(), changed)
    np.testing.assert_array_equal(tables.read_gta_labels(tmp_path / "a.png").array, ids())


@pytest.mark.parametrize("channels", [2, 3])
def test_labels_of_synthia_keep_all_16_bits(tmp_path: Path, channels: int):
    # Written by SimpleITK, whose PNG library also filters the lines.
    wanted = np.random.default_rng(0).integers(0, 65536, (60, 70)).astype(np.uint16)
    wanted[:30] = np.arange(30)[:, None]
    synthia_label(tmp_path / "a.png", wanted, channels)
    np.testing.assert_array_equal(tables.read_synthia_labels(tmp_path / "a.png").array, wanted)


# The tasks


def test_gta_to_cityscapes(tmp_path: Path):
    source, target = gta5(tmp_path / "gta"), cityscapes(tmp_path / "cs")
    datalist = made("gta2cityscapes", {"source": source, "target": target}, tmp_path / "out", partial=True)
    assert datalist.class_names == TRAIN_NAMES and datalist.label_values == tuple(range(19))
    assert datalist.ignore_values == (255,)
    assert datalist.modality == {"source": "RGB", "target": "RGB"}
    assert [Path(entry["image"]).name for entry in datalist.source] == ["gta5_00001.png", "gta5_00002.png"]
    assert [Path(entry["image"]).stem for entry in datalist.target_train] == [
        "aachen_000000_000019",
        "monchengladbach_000001_000019",
        "ulm_000002_000019",
    ]
    assert [Path(entry["image"]).stem for entry in datalist.target_val] == ["frankfurt_000000_000019"]
    for number, entry in enumerate(datalist.source, 1):
        np.testing.assert_array_equal(rows_of(entry["label"]), train_ids(ids(number)))
        assert Path(entry["image"]).read_bytes() == (source / "images" / f"{number:05d}.png").read_bytes()
    np.testing.assert_array_equal(rows_of(datalist.target_val[0]["label"]), train_ids(ids(0)))
    summary = checked(datalist, channels=3, dims=2)
    wanted = np.bincount(np.concatenate([train_ids(ids(seed)).ravel() for seed in (1, 2, 0)]), minlength=256)
    assert summary.label_voxels == {name: wanted[index] for index, name in enumerate(TRAIN_NAMES)} | {
        "ignore": wanted[255]
    }
    counts = read_class_counts(datalist)
    for number, row in enumerate(counts, 1):
        assert row.tolist() == np.bincount(train_ids(ids(number)).ravel(), minlength=256)[:19].tolist()
    text = (tmp_path / "out" / "dataset.md").read_text()
    assert "| 26 | car | 13 | car |" in text and "| 34 | license plate | 255 | ignore |" in text
    assert "| part | cases | places |" in text


@pytest.mark.parametrize(
    ("choice", "classes"), [("16", tables.SYNTHIA_16), ("13", tables.SYNTHIA_13), ("19", TRAIN_NAMES)]
)
def test_synthia_to_cityscapes(tmp_path: Path, choice: str, classes: tuple[str, ...]):
    folders = {"source": synthia(tmp_path / "syn"), "target": cityscapes(tmp_path / "cs")}
    datalist = made("synthia2cityscapes", folders, tmp_path / "out", partial=True, classes=choice)
    assert datalist.class_names == classes
    assert [TRAIN_NAMES[value] for value in datalist.label_values] == list(classes)
    kept = [TRAIN_NAMES.index(name) for name in classes]
    wanted = np.vectorize(lambda value: SYNTHIA_TRAIN_IDS.get(int(value), 255))(synthia_ids(1))
    np.testing.assert_array_equal(rows_of(datalist.source[1]["label"]), np.where(np.isin(wanted, kept), wanted, 255))
    wanted = train_ids(ids(0))
    np.testing.assert_array_equal(
        rows_of(datalist.target_val[0]["label"]), np.where(np.isin(wanted, kept), wanted, 255)
    )
    checked(datalist, channels=3, dims=2)


@pytest.mark.parametrize("references", ["copy", "none"])
def test_cityscapes_to_acdc(tmp_path: Path, references: str):
    folders = {"source": cityscapes(tmp_path / "cs"), "target": acdc(tmp_path / "acdc")}
    datalist = made("cityscapes2acdc", folders, tmp_path / "out", partial=True, references=references)
    assert len(datalist.source) == 3
    np.testing.assert_array_equal(rows_of(datalist.source[2]["label"]), train_ids(ids(2)))
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    for part, frame in (("target_train", 41), ("target_val", 58)):
        assert [entry["group"] for entry in content[part]] == list(CONDITIONS)
        for number, entry in enumerate(content[part]):
            assert entry["image"] == f"target/images/acdc_{CONDITIONS[number]}_GOPR0475_frame_{frame:06d}.png"
            assert ("label" in entry) == (part == "target_val")
            assert ("reference" in entry) == (references == "copy")
            if references == "copy":
                place = "train_ref" if part == "target_train" else "val_ref"
                stem = f"GOPR0475/GOPR0475_frame_{frame:06d}_rgb_ref_anon.png"
                original = tmp_path / "acdc" / "rgb_anon" / CONDITIONS[number] / place / stem
                assert (tmp_path / "out" / entry["reference"]).read_bytes() == original.read_bytes()
    np.testing.assert_array_equal(rows_of(datalist.target_val[3]["label"]), train_ids(ids(3)))


def test_a_lost_reference_frame_is_copied_again(tmp_path: Path):
    folders = {"source": cityscapes(tmp_path / "cs"), "target": acdc(tmp_path / "acdc")}
    made("cityscapes2acdc", folders, tmp_path / "out", partial=True)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "target").rglob("*.png")}
    lost = tmp_path / "out" / "target" / "references" / "acdc_rain_GOPR0475_frame_000058.png"
    content = lost.read_bytes()
    lost.unlink()
    made("cityscapes2acdc", folders, tmp_path / "out", partial=True)
    assert lost.read_bytes() == content
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {lost.stem}


def test_cityscapes_to_dark_zurich(tmp_path: Path):
    folders = {"source": cityscapes(tmp_path / "cs"), "target": dark_zurich(tmp_path / "dz")}
    datalist = made("cityscapes2darkzurich", folders, tmp_path / "out", partial=True)
    assert [Path(entry["image"]).stem for entry in datalist.target_train] == ["dark_zurich_GOPR0351_frame_000001"]
    assert [Path(entry["image"]).stem for entry in datalist.target_val] == ["dark_zurich_GOPR0356_frame_000321"]
    np.testing.assert_array_equal(rows_of(datalist.target_val[0]["label"]), train_ids(ids(321)))


def test_city_to_city(tmp_path: Path):
    data = cityscapes(tmp_path / "cs")
    datalist = made("cityscapes_city2city", {"data": data}, tmp_path / "out", partial=True, seed=1)
    found = [sorted(Path(entry["image"]).stem.split("_")[0] for entry in part) for part in (
        datalist.source, datalist.target_train, datalist.target_val)]  # fmt: skip
    assert sorted(found[0] + found[1]) == ["aachen", "monchengladbach", "ulm"] and found[0] and found[1]
    assert found[2] == ["frankfurt"]


def test_archives_may_lie_in_folders_of_their_own(tmp_path: Path):
    together = cityscapes(tmp_path / "cs")
    apart = tmp_path / "apart"
    for name in ("leftImg8bit", "gtFine"):
        (apart / f"{name}_trainvaltest").mkdir(parents=True)
        (together / name).rename(apart / f"{name}_trainvaltest" / name)
    datalist = made(
        "gta2cityscapes", {"source": gta5(tmp_path / "gta"), "target": apart}, tmp_path / "out", partial=True
    )
    assert len(datalist.target_train) == 3 and len(datalist.target_val) == 1


@pytest.mark.parametrize("alpha", [255, 200])
def test_transparency_is_left_out_where_nothing_shows_through(tmp_path: Path, alpha: int):
    source = gta5(tmp_path / "gta")
    file = source / "images" / "00001.png"
    solid = np.asarray(Image.open(file))
    Image.fromarray(np.dstack([solid, np.full(SIZE, alpha, np.uint8)])).save(file)
    folders = {"source": source, "target": cityscapes(tmp_path / "cs")}
    if alpha < 255:
        with pytest.raises(InputError, match=r"00001\.png: found transparent pixels; wanted an opaque picture"):
            made("gta2cityscapes", folders, tmp_path / "out", partial=True)
        return
    datalist = made("gta2cityscapes", folders, tmp_path / "out", partial=True)
    np.testing.assert_array_equal(np.asarray(Image.open(datalist.source[0]["image"])), solid)


def test_unfit_pairs_of_gta5_are_left_out(tmp_path: Path):
    source = gta5(tmp_path / "gta")
    for key, size in (("15188", (8, 6)), ("17705", SIZE)):
        picture(source / "images" / f"{key}.png")
        save(source / "labels" / f"{key}.png", ids(size=size), PALETTE)
    folders = {"source": source, "target": cityscapes(tmp_path / "cs")}
    datalist = made("gta2cityscapes", folders, tmp_path / "out", partial=True)
    assert [Path(entry["image"]).stem[-5:] for entry in datalist.source] == ["00001", "00002", "17705"]
    assert "15188 and 17705 are left out" in (tmp_path / "out" / "dataset.md").read_text()


# What is refused, before anything is written

Change = Callable[[Path], object]
LABEL = "gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png"


def _first_gta(array: np.ndarray, palette: list[int] | None = None) -> Change:
    return lambda root: save(root / "gta" / "labels" / "00001.png", array, palette)


def _val(array: np.ndarray) -> Change:
    return lambda root: save(root / "cs" / LABEL, array)


def _renamed(root: Path) -> None:
    path = root / "cs" / LABEL
    path.rename(path.with_name(path.name.replace("labelIds", "labelTrainIds")))


FLAT = np.full((*SIZE, 3), (128, 64, 128), np.uint8)
WRONG: dict[str, tuple[Change, str]] = {
    "unknown colours": (
        _first_gta(FLAT + np.uint8(1)),
        r"00001\.png: found the colour\(s\) \(129, 65, 129\) in 48 pixel",
    ),
    "unknown colours of a palette": (
        _first_gta(np.zeros(SIZE, np.uint8) + 7, [1, 2, 3, 4, 5, 6] * 20),
        r"00001\.png: found the colour\(s\) \(4, 5, 6\) in 48 pixel",
    ),
    "ids beyond the table": (_first_gta(np.full(SIZE, 35, np.uint8)), r"00001\.png: found the label value.*35\.0"),
    "train ids of GTA5": (_first_gta(train_ids(ids())), r"00001\.png: found the value 255, as in train ids"),
    "another size": (_first_gta(ids(size=(8, 6))), r"00001\.png: found size \(8, 6\); wanted \(6, 8\)"),
    "train ids of Cityscapes": (_val(train_ids(ids())), "found the value 255, as in train ids; wanted label ids"),
    "train ids without ignored pixels": (
        _val(np.minimum(ids(), 18)),
        r"frankfurt: found no label value above 18 in 1 file\(s\) of Cityscapes, as in train ids",
    ),
    "colours of Cityscapes": (
        _val(np.random.default_rng(0).integers(0, 9, (*SIZE, 3), dtype=np.uint8)),
        r"labelIds\.png: found colors; wanted one label value per pixel",
    ),
    "train ids alone": (
        _renamed,
        r"labelIds\.png: no such file, 1 of 1 labels are missing; found .*labelTrainIds\.png",
    ),
    "a label without image": (
        lambda root: (root / "gta" / "images" / "00002.png").unlink(),
        "found no image for 00002; wanted one for each image",
    ),
    "a truncated label": (
        lambda root: (root / "gta" / "labels" / "00001.png").write_bytes(b"\x89PNG"),
        r"00001\.png: cannot be read as a picture",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_labels_are_named_before_anything_is_written(tmp_path: Path, case: str):
    change, message = WRONG[case]
    folders = {"source": gta5(tmp_path / "gta"), "target": cityscapes(tmp_path / "cs")}
    change(tmp_path)
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=message):
        made("gta2cityscapes", folders, tmp_path / "out", partial=True)
    assert hashes(tmp_path) == before and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("channels", "dtype", "message"),
    [
        (3, np.uint8, r"0000000\.png: found RGB of at most 8 bits; wanted the owner's 16-bit labels"),
        (1, np.uint8, r"0000000\.png: found L of at most 8 bits; wanted the owner's 16-bit labels"),
        (1, np.uint16, r"0000000\.png: found 16-bit grey; wanted the owner's 16-bit labels of .* 2 or 3 channels"),
    ],
)
def test_labels_of_synthia_must_be_the_owners(tmp_path: Path, channels: int, dtype: type, message: str):
    folders = {"source": synthia(tmp_path / "syn"), "target": cityscapes(tmp_path / "cs")}
    path = tmp_path / "syn" / "RAND_CITYSCAPES" / "GT" / "LABELS" / "0000000.png"
    path.unlink()
    array = np.zeros((*SIZE, channels), dtype) + dtype(3)
    sitk.WriteImage(sitk.GetImageFromArray(array if channels > 1 else array[..., 0], isVector=channels > 1), str(path))
    with pytest.raises(InputError, match=message):
        made("synthia2cityscapes", folders, tmp_path / "out", partial=True)
    assert not (tmp_path / "out").exists()


def test_missing_reference_frames_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = {"source": cityscapes(tmp_path / "cs"), "target": acdc(tmp_path / "acdc")}
    name = "rgb_anon/snow/val_ref/GOPR0475/GOPR0475_frame_000058_rgb_ref_anon.png"
    (tmp_path / "acdc" / name).unlink()
    from dacal_med.preparation.recipe import Request
    from dacal_med.preparation.sets import street_owners

    images = {"GOPR0475_frame_000058": tmp_path / "acdc/rgb_anon/snow/val/GOPR0475/GOPR0475_frame_000058_rgb_anon.png"}
    with pytest.raises(InputError, match=r"frame_000058_rgb_ref_anon\.png: no such file, 1 of 1 reference frames"):
        street_owners._references(tmp_path / "acdc/rgb_anon/snow/val_ref", images, Request({}))
    datalist = made("cityscapes2acdc", folders, tmp_path / "out", partial=True)
    entries = json.loads((datalist.root / "datalist.json").read_text())["target_val"]
    assert [entry["group"] for entry in entries if "reference" not in entry] == ["snow"]
    line = f"1 reference frames of ACDC: {name.removeprefix('rgb_anon/')}"
    assert f"## Missing\n\n- {line}\n" in (datalist.root / "dataset.md").read_text()
    shutil.rmtree(tmp_path / "acdc" / "rgb_anon" / "fog" / "train")
    words = [f"--{role}={folder}" for role, folder in folders.items()]
    assert main(["prepare", "cityscapes2acdc", *words, "--partial", f"--out={datalist.root}"]) == 0
    told = capsys.readouterr().out
    assert f"missing: {line}\n" in told
    assert "missing: 1 folders of ACDC: rgb_anon/fog/train\n" in told


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-60])


def _grey(path: Path) -> None:
    Image.open(path).convert("L").save(path)


@pytest.mark.parametrize(("change", "said"), [(_cut, "cannot be read"), (_grey, "found a grey picture; wanted")])
@pytest.mark.parametrize(
    "name",
    [
        "cs/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png",
        "acdc/rgb_anon/snow/val/GOPR0475/GOPR0475_frame_000058_rgb_anon.png",
        "acdc/rgb_anon/snow/val_ref/GOPR0475/GOPR0475_frame_000058_rgb_ref_anon.png",
    ],
)
def test_pictures_that_are_cut_off_or_grey_are_refused(tmp_path: Path, name: str, change: Change, said: str):
    folders = {"source": cityscapes(tmp_path / "cs"), "target": acdc(tmp_path / "acdc")}
    change(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / name}: {said}")):
        made("cityscapes2acdc", folders, tmp_path / "out", partial=True)
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_colours_in_a_table_are_written_out(tmp_path: Path):
    source = gta5(tmp_path / "gta")
    file = source / "images" / "00001.png"
    Image.open(file).quantize(16).save(file)
    solid = np.asarray(Image.open(file).convert("RGB"))
    folders = {"source": source, "target": cityscapes(tmp_path / "cs")}
    datalist = made("gta2cityscapes", folders, tmp_path / "out", partial=True)
    np.testing.assert_array_equal(np.asarray(Image.open(datalist.source[0]["image"])), solid)


def test_modes_that_hold_no_labels_are_named(tmp_path: Path):
    Image.new("CMYK", (4, 4)).save(tmp_path / "label.jpg")
    with pytest.raises(InputError, match=r"label\.jpg: found a picture of the mode CMYK; wanted label ids"):
        tables.read_gta_labels(tmp_path / "label.jpg")


@pytest.mark.parametrize(
    ("recipe", "source", "target", "message"),
    [
        ("gta2cityscapes", gta5, cityscapes, r"gta: found 2 image\(s\); wanted 24966 \(--partial"),
        ("synthia2cityscapes", synthia, cityscapes, r"found 2 image\(s\); wanted 9400"),
        ("cityscapes2acdc", cityscapes, acdc, r"found 1 image\(s\); wanted 400"),
        ("cityscapes2darkzurich", cityscapes, dark_zurich, r"train: found 3 image\(s\); wanted 2975"),
    ],
)
def test_incomplete_downloads_are_refused(
    tmp_path: Path, recipe: str, source: Callable[[Path], Path], target: Callable[[Path], Path], message: str
):
    names = {"gta5": "gta", "synthia": "syn"}
    folders = {
        "source": source(tmp_path / names.get(source.__name__, source.__name__)),
        "target": target(tmp_path / f"{target.__name__}_target"),
    }
    with pytest.raises(InputError, match=message):
        made(recipe, folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_folder_is_refused(tmp_path: Path):
    folders = {"source": gta5(tmp_path / "gta"), "target": dark_zurich(tmp_path / "dz")}
    with pytest.raises(InputError, match="wanted Cityscapes with leftImg8bit/train"):
        made("gta2cityscapes", folders, tmp_path / "out", partial=True)


def test_labels_that_were_not_prepared_are_explained_before_training(tmp_path: Path):
    folders = {"source": gta5(tmp_path / "gta"), "target": cityscapes(tmp_path / "cs")}
    datalist = made("gta2cityscapes", folders, tmp_path / "out", partial=True)
    save(Path(datalist.source[0]["label"]), ids())
    with pytest.raises(InputError, match=r"found the label value.*19\.0.*wanted only"):
        checked(load_datalist(tmp_path / "out"), channels=3, dims=2)
    save(Path(datalist.source[0]["label"]), FLAT)
    with pytest.raises(InputError, match="found 3 channels; wanted 1, holding label values"):
        check_data(datalist, 2, 3, progress=False)
