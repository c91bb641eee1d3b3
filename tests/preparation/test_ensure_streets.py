# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The stand-in for streets: complete or absent, repeatable, in the owners' layouts, and different by domain."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from dacal_med.data.datalist import Datalist, load_datalist
from dacal_med.data.street_labels import TRAIN_NAMES
from dacal_med.io.errors import InputError
from dacal_med.preparation import ensure_streets
from dacal_med.preparation.sets.street_owners import CONDITIONS
from dacal_med.preparation.sets.street_tables import SYNTHIA_13, SYNTHIA_16
from dacal_med.preparation.streets import looks
from dacal_med.preparation.streets.canvas import FAR, IDS
from dacal_med.preparation.streets.layouts import TASKS, png_of_16_bits
from dacal_med.preparation.streets.scene import Style, draw_street, labels_of
from tests.preparation.builders import checked, hashes

SMALL = {"image_size": (24, 48), "num_source": 4, "num_target_train": 4, "num_target_val": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Datalist]:
    folder = tmp_path_factory.mktemp("streets")
    return {task: load_datalist(ensure_streets(folder / task, task, **SMALL)) for task in TASKS}


@pytest.mark.parametrize("task", TASKS)
def test_it_is_a_complete_data_set(made: dict[str, Datalist], task: str):
    datalist = made[task]
    assert datalist.class_names == (SYNTHIA_16 if task == "synthia2cityscapes" else TRAIN_NAMES)
    assert datalist.ignore_values == (255,)
    assert datalist.modality == {"source": "RGB", "target": "RGB"}
    assert [len(part) for part in (datalist.source, datalist.target_train, datalist.target_val)] == [4, 4, 4]
    summary = checked(datalist, channels=3, dims=2)
    assert summary.images == 12 and summary.labels == 8
    assert sum(summary.label_voxels.values()) == 8 * 24 * 48
    for name in ("road", "sidewalk", "building", "vegetation", "car"):
        assert summary.label_voxels[name] > 0


def test_raw_files_are_in_the_owners_layouts(made: dict[str, Datalist]):
    def files(task: str) -> list[str]:
        raw = made[task].root / "raw"
        return sorted(path.relative_to(raw).as_posix() for path in raw.rglob("*.png"))

    gta = files("gta2cityscapes")
    assert {"gta5/images/00001.png", "gta5/labels/00004.png"} <= set(gta)
    assert "cityscapes/leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png" in gta
    assert "cityscapes/gtFine/val/frankfurt/frankfurt_000000_000019_gtFine_labelIds.png" in gta
    assert not [name for name in gta if "gtFine/train" in name]
    assert "synthia/RAND_CITYSCAPES/GT/LABELS/0000003.png" in files("synthia2cityscapes")
    acdc = files("cityscapes2acdc")
    assert "acdc/rgb_anon/night/train/GOPR0476/GOPR0476_frame_000001_rgb_anon.png" in acdc
    assert "acdc/rgb_anon/night/train_ref/GOPR0476/GOPR0476_frame_000001_rgb_ref_anon.png" in acdc
    assert "acdc/gt/night/val/GOPR0476/GOPR0476_frame_500001_gt_labelIds.png" in acdc
    zurich = files("cityscapes2darkzurich")
    assert "dark_zurich/rgb_anon/train/night/GOPR0351/GOPR0351_frame_000000_rgb_anon.png" in zurich
    assert "dark_zurich/gt/val/night/GOPR0356/GOPR0356_frame_500000_gt_labelIds.png" in zurich


def test_conditions_of_acdc_are_recorded(made: dict[str, Datalist]):
    content = json.loads((made["cityscapes2acdc"].root / "datalist.json").read_text())
    for part in ("target_train", "target_val"):
        assert sorted(entry["group"] for entry in content[part]) == sorted(CONDITIONS)
        assert all(entry["group"] in entry["image"] for entry in content[part])
        assert all((made["cityscapes2acdc"].root / entry["reference"]).is_file() for entry in content[part])
    assert not any("group" in entry or "reference" in entry for entry in content["source"])


def test_few_images_of_acdc_show_few_conditions(tmp_path: Path):
    few = {"image_size": (16, 32), "num_source": 1, "num_target_train": 2, "num_target_val": 1}
    content = json.loads((Path(ensure_streets(tmp_path / "s", "cityscapes2acdc", **few)) / "datalist.json").read_text())
    assert [entry["group"] for entry in content["target_train"]] == ["fog", "night"]
    assert [entry["group"] for entry in content["target_val"]] == ["fog"]


def test_the_same_parameters_give_the_same_files(tmp_path: Path):
    few = {"image_size": (16, 32), "num_source": 1, "num_target_train": 1, "num_target_val": 1}
    first, again, other = (
        Path(ensure_streets(tmp_path / name, seed=seed, **few)) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )

    def pictures(folder: Path) -> dict[str, str]:
        return {Path(name).relative_to(folder).as_posix(): value for name, value in hashes(folder).items()}

    same, second, different = (
        {name: value for name, value in pictures(folder).items() if name.endswith("png")}
        for folder in (first, again, other)
    )
    assert same == second and same.keys() == different.keys()
    assert not set(same.values()) & set(different.values())
    before = hashes(first)
    assert ensure_streets(first, **few) == str(first)
    assert hashes(first) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"holds a stand-in for streets made with .*'seed': 0.*wanted .*'seed': 2"):
        ensure_streets(first, seed=2, **few)


def test_a_folder_of_someone_else_is_left_alone(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="holds no complete stand-in for streets"):
        ensure_streets(tmp_path)


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dacal_med.preparation.streets.ensure.prepare", fail)
    with pytest.raises(KeyboardInterrupt):
        ensure_streets(tmp_path / "s", image_size=(16, 32), num_source=1, num_target_train=1, num_target_val=1)
    assert list(tmp_path.iterdir()) == []


def test_choices_reach_the_recipe(tmp_path: Path):
    few = {"image_size": (16, 32), "num_source": 1, "num_target_train": 1, "num_target_val": 1}
    folder = ensure_streets(tmp_path / "s", "synthia2cityscapes", classes="13", **few)
    assert load_datalist(folder).class_names == SYNTHIA_13
    with pytest.raises(InputError, match="found classes = '12'; wanted one of 16, 13, 19"):
        ensure_streets(tmp_path / "t", "synthia2cityscapes", classes="12", **few)
    with pytest.raises(InputError, match=r"found the choice\(s\) colour"):
        ensure_streets(tmp_path / "t", colour="red", **few)


def test_wrong_requests_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="found the task 'kitti', wanted one of"):
        ensure_streets(tmp_path / "s", "kitti")
    with pytest.raises(ValueError, match="image counts"):
        ensure_streets(tmp_path / "s", num_target_val=0)
    with pytest.raises(ValueError, match="rows and columns of at least 16"):
        ensure_streets(tmp_path / "s", image_size=(8, 64))


def test_streets_are_laid_out_in_depth():
    canvas = draw_street((96, 192), Style(hood=True), np.random.default_rng(3))
    labels, depth = canvas.labels, canvas.depth
    camera = canvas.camera
    horizon = round(camera.horizon)
    assert (labels[-1] == IDS["ego vehicle"]).all()
    assert not (labels[: horizon - 2] == IDS["road"]).any()
    assert not (labels[horizon + 6 :] == IDS["sky"]).any()
    assert (depth[labels == IDS["sky"]] == FAR).all()
    # A pinhole above a plane: ground that is `down` below the horizon lies height * focal / down ahead.
    rows, columns = np.nonzero(labels == IDS["road"])
    wanted = camera.height * camera.focal / (rows + 0.5 - camera.horizon)
    np.testing.assert_allclose(depth[rows, columns], wanted, rtol=1e-4)


def test_every_class_occurs_and_excluded_ones_do_not():
    seen = np.zeros(256, bool)
    excluded = Style(without=frozenset({"terrain", "truck", "train"}))
    for seed in range(8):
        seen[labels_of(draw_street((96, 192), Style(), np.random.default_rng(seed)), 2)] = True
        labels = draw_street((96, 192), excluded, np.random.default_rng(seed)).labels
        assert not np.isin(labels, [IDS[name] for name in excluded.without]).any()
    assert [name for name in TRAIN_NAMES if not seen[IDS[name]]] == []


def test_domains_look_different():
    canvas = draw_street((96, 192), Style(), np.random.default_rng(0))
    shown = {
        name: looks.photograph(canvas, getattr(looks, name), 2, np.random.default_rng(0)).astype(float)
        for name in ("GTA5", "SYNTHIA", "CITYSCAPES", "FOG", "RAIN", "SNOW", "NIGHT", "DARK_ZURICH")
    }
    assert {image.shape for image in shown.values()} == {(48, 96, 3)}
    bright = {name: image.mean() for name, image in shown.items()}
    assert bright["NIGHT"] < 0.5 * bright["CITYSCAPES"] and bright["DARK_ZURICH"] < 0.5 * bright["CITYSCAPES"]
    colourful = {name: np.ptp(image, axis=-1).mean() for name, image in shown.items()}
    assert colourful["CITYSCAPES"] < 0.7 * min(colourful["GTA5"], colourful["SYNTHIA"])
    far = np.broadcast_to((canvas.depth[1::2, 1::2] > 40)[..., None], shown["FOG"].shape)
    assert shown["FOG"][far].std() < 0.5 * shown["CITYSCAPES"][far].std()  # haze takes contrast away


def test_synthetic_16_bit_labels_are_what_another_library_reads(tmp_path: Path):
    array = np.random.default_rng(0).integers(0, 65536, (9, 7, 3)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png_of_16_bits(array))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.png"))), array)


def test_labels_of_gta5_have_the_colours_of_cityscapes(made: dict[str, Datalist]):
    file = made["gta2cityscapes"].root / "raw" / "gta5" / "labels" / "00001.png"
    with Image.open(file) as picture:
        assert picture.mode == "P"
        ids, colours = np.asarray(picture), np.asarray(picture.convert("RGB"))
    assert (colours[ids == IDS["road"]] == (128, 64, 128)).all()
