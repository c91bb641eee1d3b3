# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pictures: electron microscopy, retinal vessels, optic disc and cup, in the layouts of their owners."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dacal_med.data.split import hold_out
from dacal_med.io.errors import InputError
from dacal_med.io.pictures import count_pages
from dacal_med.io.reading import read_image
from dacal_med.preparation import find_recipe
from dacal_med.preparation.reading import read_mask, read_picture
from dacal_med.preparation.sets.disc_cup import combine_masks
from tests.preparation.builders import checked, made, names, values_of

SIZE = (8, 10)  # rows, columns


def grey(seed: int, size: tuple[int, ...] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


def colour(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return grey(seed, (*size, 3))


def mask(seed: int, value: int = 255, dtype: type = np.uint8) -> np.ndarray:
    array = np.where(np.random.default_rng(seed).random(SIZE) < 0.3, value, 0)
    array[:2, :3] = 0, value, value  # both values, and no symmetry
    return array.astype(dtype)


def write(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(array)
    picture.convert(mode).save(path) if mode else picture.save(path)
    return path


def pages(path: Path, stack: list[np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = [Image.fromarray(page) for page in stack]
    first.save(path, save_all=True, append_images=rest)


def zipped(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PPM")
    path.write_bytes(gzip.compress(buffer.getvalue()))


def as_rows(path: str) -> np.ndarray:
    """Label as ``(rows, columns)``: pictures are read with their axes swapped."""
    return values_of(path).T


# Mitochondria


def vnc(folder: Path, count: int = 20) -> Path:
    for index in range(count):
        write(folder / "groundtruth-drosophila-vnc-master" / "stack1" / "raw" / f"{index:02d}.tif", grey(index))
        write(
            folder / "groundtruth-drosophila-vnc-master" / "stack1" / "mitochondria" / f"{index:02d}.png", mask(index)
        )
    write(folder / "groundtruth-drosophila-vnc-master" / "stack2" / "raw" / "00.tif", grey(99))
    return folder


def lucchi(folder: Path, count: int = 165) -> Path:
    for number, kind in enumerate(("training", "testing")):
        pages(folder / f"{kind}.tif", [grey(1000 * number + page) for page in range(count)])
        pages(folder / f"{kind}_groundtruth.tif", [mask(1000 * number + page) for page in range(count)])
    return folder


def mitoem(folder: Path, dtype: type = np.uint16) -> Path:
    """Sections 0 to 2 for training, 3 and 4 for evaluation, 5 without labels."""
    for index in range(6):
        write(folder / "im" / f"im{index:04d}.png", grey(index))
    for index in range(5):
        place = "mito-train-v2" if index < 3 else "mito-val-v2"
        write(folder / place / f"seg{index:04d}.tif", mask(index, 300 + index, dtype))
    return folder


def test_vnc_to_lucchi(tmp_path: Path):
    given = {"source": vnc(tmp_path / "vnc"), "target": lucchi(tmp_path / "lucchi")}
    data = made("mitochondria_em2em", given, tmp_path / "out")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [20, 165, 165]
    assert names(data.target_val)[:2] == ["lucchi_testing_000", "lucchi_testing_001"]
    held_out = [int(name[-2:]) for name in names(hold_out(data.source)[1])]  # neighbours alone
    assert held_out == list(range(held_out[0], held_out[0] + 4))
    np.testing.assert_array_equal(as_rows(data.source[7]["image"]), grey(7))
    np.testing.assert_array_equal(as_rows(data.target_val[164]["image"]), grey(1164))
    np.testing.assert_array_equal(as_rows(data.target_val[164]["label"]), mask(1164) > 0)
    assert checked(data, dims=2).label_voxels["mitochondria"] == sum(
        int((mask(seed) > 0).sum()) for seed in (*range(20), *range(1000, 1165))
    )
    assert data.modality == {"source": "gray", "target": "gray"}


def test_vnc_to_lucchi_with_its_stacks_exchanged(tmp_path: Path):
    """DA-ISC's subset 2: nothing but what is unlabelled and what is evaluated differs from subset 1."""
    given = {"source": vnc(tmp_path / "vnc"), "target": lucchi(tmp_path / "lucchi")}
    data = made("mitochondria_em2em", given, tmp_path / "out", target_set="lucchi2")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [20, 165, 165]
    assert names(data.target_train)[::164] == ["lucchi_testing_000", "lucchi_testing_164"]
    assert names(data.target_val)[::164] == ["lucchi_training_000", "lucchi_training_164"]
    np.testing.assert_array_equal(as_rows(data.target_train[164]["image"]), grey(1164))
    np.testing.assert_array_equal(as_rows(data.target_val[164]["image"]), grey(164))
    np.testing.assert_array_equal(as_rows(data.target_val[164]["label"]), mask(164) > 0)
    assert not any("label" in entry for entry in data.target_train)
    assert "Lucchi with its stacks exchanged" in data.name
    assert "as lucchi2 the other way round" in (tmp_path / "out" / "dataset.md").read_text()


def test_lucchi_is_no_target_of_itself(tmp_path: Path):
    given = {"source": lucchi(tmp_path / "lucchi", 1), "target": tmp_path / "lucchi"}
    for target in ("lucchi", "lucchi2"):
        with pytest.raises(InputError, match="found lucchi for both; wanted two data sets"):
            made("mitochondria_em2em", given, tmp_path / "out", partial=True, source_set="lucchi", target_set=target)
    source_sets = next(c.values for c in find_recipe("mitochondria_em2em").choices if c.name == "source_set")
    assert "lucchi2" not in source_sets


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_instances_become_mitochondria(tmp_path: Path, dtype: type):
    given = {"source": mitoem(tmp_path / "r", dtype), "target": vnc(tmp_path / "vnc")}
    choices = {"source_set": "mitoem_r", "target_set": "vnc3"}
    data = made("mitochondria_em2em", given, tmp_path / "out", partial=True, **choices)
    assert names(data.source) == ["mitoem_r_0000", "mitoem_r_0001", "mitoem_r_0002"]
    assert names(data.target_val) == ["vnc3_16", "vnc3_17", "vnc3_18", "vnc3_19"]
    np.testing.assert_array_equal(as_rows(data.source[2]["label"]), mask(2) > 0)


def test_mitoem_as_a_target(tmp_path: Path):
    given = {"source": vnc(tmp_path / "vnc"), "target": mitoem(tmp_path / "h")}
    data = made("mitochondria_em2em", given, tmp_path / "out", partial=True, target_set="mitoem_h")
    assert names(data.target_train) == ["mitoem_h_0000", "mitoem_h_0001", "mitoem_h_0002"]
    assert names(data.target_val) == ["mitoem_h_0003", "mitoem_h_0004"]


def test_mitochondria_refuses(tmp_path: Path):
    source, target = vnc(tmp_path / "vnc"), lucchi(tmp_path / "lucchi", 3)
    with pytest.raises(InputError, match=r"training\.tif: found 3 section\(s\); wanted 165"):
        made("mitochondria_em2em", {"source": source, "target": target}, tmp_path / "out")
    with pytest.raises(InputError, match=r"wanted EPFL Electron Microscopy Dataset .* with training\.tif"):
        made("mitochondria_em2em", {"source": source, "target": source}, tmp_path / "out")
    pages(target / "testing_groundtruth.tif", [mask(0)] * 2)
    with pytest.raises(InputError, match=r"testing_groundtruth\.tif: found 2 page\(s\); wanted 3"):
        made("mitochondria_em2em", {"source": source, "target": target}, tmp_path / "out", partial=True)
    next(source.rglob("mitochondria/07.png")).unlink()
    with pytest.raises(InputError, match="found no label for 07; wanted one for each section"):
        made("mitochondria_em2em", {"source": source, "target": target}, tmp_path / "out", partial=True)


def test_real_sections_of_vnc(shared_data: Path, tmp_path: Path):
    """The sample's sections in the layout of their owners come out as they went in."""
    sample = shared_data / "vnc_mito"
    source = tmp_path / "vnc"
    for index in range(20):
        name = f"{index:02d}"
        pixels = read_image(sample / "images" / f"{name}.png").array
        label = read_image(sample / "labels" / f"{name}.png").array
        write(source / "stack1" / "raw" / f"{name}.tif", pixels[0].T.astype(np.uint8))
        write(source / "stack1" / "mitochondria" / f"{name}.png", 255 * label[0].T.astype(np.uint8))
    given = {"source": source, "target": lucchi(tmp_path / "lucchi", 2)}
    data = made("mitochondria_em2em", given, tmp_path / "out", partial=True)
    for entry, name in zip(data.source, sorted(path.name for path in (sample / "images").iterdir()), strict=True):
        np.testing.assert_array_equal(values_of(entry["image"]), read_image(sample / "images" / name).array[0])
        np.testing.assert_array_equal(values_of(entry["label"]), read_image(sample / "labels" / name).array[0])


# Vessels


def drive(folder: Path, withheld: bool = False) -> Path:
    for kind, numbers in (("training", range(21, 41)), ("test", range(1, 21))):
        for number in numbers:
            write(folder / kind / "images" / f"{number:02d}_{kind}.tif", colour(number))
            write(folder / kind / "mask" / f"{number:02d}_{kind}_mask.gif", mask(number))
            if kind == "training" or not withheld:
                write(folder / kind / "1st_manual" / f"{number:02d}_manual1.gif", mask(number))
    return folder


def chase(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for number in range(1, 15):
        for side in "LR":
            stem = f"Image_{number:02d}{side}"
            write(folder / f"{stem}.jpg", colour(number))
            write(folder / f"{stem}_1stHO.png", mask(number), "1")
            write(folder / f"{stem}_2ndHO.png", mask(number + 1), "1")
    return folder


def stare(folder: Path) -> Path:
    for number in range(1, 21):
        zipped(folder / "stare-images" / f"im{number:04d}.ppm.gz", colour(number))
        zipped(folder / "labels-ah" / f"im{number:04d}.ah.ppm.gz", mask(number))
    return folder


def test_drive_to_chase(tmp_path: Path):
    given = {"source": drive(tmp_path / "drive"), "target": chase(tmp_path / "chase")}
    data = made("vessels_fundus2fundus", given, tmp_path / "out")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [40, 20, 8]
    assert {name[6:8] for name in names(data.target_val)} == {"11", "12", "13", "14"}
    label = {name: entry["label"] for name, entry in zip(names(data.source), data.source, strict=True)}
    np.testing.assert_array_equal(as_rows(label["drive_23"]), mask(23) > 0)
    np.testing.assert_array_equal(as_rows(data.target_val[0]["label"]), mask(11) > 0)
    image = read_image(data.source[0]["image"]).array
    np.testing.assert_array_equal(image.transpose(2, 1, 0), colour(int(names(data.source)[0][6:])))
    checked(data, channels=3, dims=2)


def test_drive_as_a_target(tmp_path: Path):
    given = {"source": stare(tmp_path / "stare"), "target": drive(tmp_path / "drive")}
    choices = {"source_set": "stare", "target_set": "drive"}
    data = made("vessels_fundus2fundus", given, tmp_path / "out", **choices)
    assert names(data.target_train) == [f"drive_{number}" for number in range(21, 41)]
    assert names(data.target_val) == [f"drive_{number:02d}" for number in range(1, 21)]
    given["target"] = drive(tmp_path / "withheld", withheld=True)
    data = made("vessels_fundus2fundus", given, tmp_path / "drawn", **choices)
    assert [len(data.target_train), len(data.target_val)] == [16, 4]
    np.testing.assert_array_equal(as_rows(data.source[2]["label"]), mask(3) > 0)


def test_vessels_refuse(tmp_path: Path):
    given = {"source": drive(tmp_path / "drive"), "target": chase(tmp_path / "chase")}
    write(given["target"] / "Image_11R_1stHO.png", mask(11, 128))
    with pytest.raises(InputError, match=r"Image_11R_1stHO\.png: found the label value\(s\) \[128\.0\]"):
        made("vessels_fundus2fundus", given, tmp_path / "out")
    (given["target"] / "Image_11R_1stHO.png").unlink()
    with pytest.raises(InputError, match="found no label for 11R"):
        made("vessels_fundus2fundus", given, tmp_path / "out")
    (given["target"] / "Image_11R.jpg").unlink()
    with pytest.raises(InputError, match=r"found 27 photograph\(s\); wanted 28"):
        made("vessels_fundus2fundus", given, tmp_path / "out")


# Disc and cup


def refuge(folder: Path) -> Path:
    for number, (kind, letter) in enumerate((("Glaucoma", "g"), ("Non-Glaucoma", "n"))):
        for index in range(1, 3):
            name = f"{letter}{index:04d}"
            write(folder / "REFUGE-Training400" / "Training400" / kind / f"{name}.jpg", colour(10 * number + index))
            write(folder / "Annotation-Training400" / "Disc_Cup_Masks" / kind / f"{name}.bmp", disc_and_cup())
    return folder


def refuge_canon(folder: Path) -> Path:
    for index in range(1, 3):
        write(folder / "REFUGE-Validation400" / f"V{index:04d}.jpg", colour(index))
        write(folder / "REFUGE-Validation400-GT" / "Disc_Cup_Masks" / f"V{index:04d}.bmp", disc_and_cup())
        write(folder / "Test400" / f"T{index:04d}.jpg", colour(index))
        write(folder / "REFUGE-Test-GT" / "Disc_Cup_Masks" / "GN"[index - 1] / f"T{index:04d}.bmp", disc_and_cup())
    return folder


def disc_and_cup() -> np.ndarray:
    """Background 255, disc 128, cup 0, as REFUGE draws them."""
    array = np.full(SIZE, 255, np.uint8)
    array[1:7, 2:9], array[3:5, 4:7] = 128, 0
    return array


def inside(rows: slice, columns: slice, value: int = 255) -> np.ndarray:
    array = np.zeros(SIZE, np.uint8)
    array[rows, columns] = value
    return array


def drishti(folder: Path, flat: bool = False) -> Path:
    for kind, truth, numbers in (("Training", "GT", (2, 4)), ("Test", "Test_GT", (1, 3))):
        for number in numbers:
            name = f"drishtiGS_{number:03d}"
            place = folder / "Drishti-GS1_files" / kind
            write(place / "Images" / ("" if flat else "GLAUCOMA") / f"{name}.png", colour(number))
            # Two, one and all of four experts.
            disc = inside(slice(1, 7), slice(2, 9), 127)
            disc[0, 0], disc[2, 2] = 64, 255
            write(place / truth / name / "SoftMap" / f"{name}_ODsegSoftmap.png", disc)
            cup = inside(slice(3, 5), slice(4, 7), 191)
            write(place / truth / name / "SoftMap" / f"{name}_cupsegSoftmap.png", cup)
    return folder


def rimone(folder: Path) -> Path:
    for group, stems in (("Healthy", ("N-10-R", "N-11-L", "N-12-R")), ("Glaucoma and suspects", ("G-1-L", "S-2-R"))):
        for stem in stems:
            pair = np.concatenate([colour(1) // 8, 255 - colour(2) // 8], axis=1)  # dark left, bright right
            write(folder / "RIM-ONE r3" / group / "Stereo Images" / f"{stem}.jpg", pair)
            masks = folder / "RIM-ONE r3" / group / "Expert1_masks"
            both = [inside(slice(1, 7), slice(2, 9)), inside(slice(3, 5), slice(4, 7))]
            for part, array in zip(("Disc", "Cup"), both, strict=True):
                write(masks / f"{stem}-1-{part}-exp1.png", np.concatenate([array, 0 * array], axis=1))
    return folder


def wanted_label() -> np.ndarray:
    return np.select([disc_and_cup() == 128, disc_and_cup() == 0], [1, 2], 0)


@pytest.mark.parametrize("flat", [False, True])
def test_refuge_to_drishti(tmp_path: Path, flat: bool):
    given = {"source": refuge(tmp_path / "refuge"), "target": drishti(tmp_path / "drishti", flat)}
    data = made("disc_cup_fundus2fundus", given, tmp_path / "out", partial=True)
    assert data.class_names == ("background", "optic disc outside the cup", "optic cup")
    assert names(data.source) == ["refuge_g0001", "refuge_g0002", "refuge_n0001", "refuge_n0002"]
    assert names(data.target_train) == ["drishtiGS_002", "drishtiGS_004"]
    assert names(data.target_val) == ["drishtiGS_001", "drishtiGS_003"]
    for entry in (data.source[0], data.target_val[0]):
        np.testing.assert_array_equal(as_rows(entry["label"]), wanted_label())
    checked(data, channels=3, dims=2)


def test_refuge_cameras(tmp_path: Path):
    given = {"source": refuge(tmp_path / "refuge"), "target": refuge_canon(tmp_path / "canon")}
    data = made("disc_cup_fundus2fundus", given, tmp_path / "out", partial=True, target_set="refuge_canon")
    assert names(data.target_train) == ["refuge_V0001", "refuge_V0002"]
    assert names(data.target_val) == ["refuge_T0001", "refuge_T0002"]


def test_stereo_photographs_are_halved(tmp_path: Path):
    given = {"source": refuge(tmp_path / "refuge"), "target": rimone(tmp_path / "rimone")}
    data = made("disc_cup_fundus2fundus", given, tmp_path / "out", partial=True, target_set="rimone")
    assert [len(data.target_train), len(data.target_val)] == [4, 1]
    np.testing.assert_array_equal(as_rows(data.target_val[0]["label"]), wanted_label())
    image = read_image(data.target_train[0]["image"]).array
    assert image.shape == (3, SIZE[1], SIZE[0])
    assert image[:, : SIZE[1] // 2].mean() < 40  # of the dark half; its right edge is blurred by JPEG
    checked(data, channels=3, dims=2)


def test_disc_and_cup_refuse(tmp_path: Path):
    given = {"source": refuge(tmp_path / "refuge"), "target": drishti(tmp_path / "drishti")}
    with pytest.raises(InputError, match=r"found 4 photograph\(s\); wanted 400"):
        made("disc_cup_fundus2fundus", given, tmp_path / "out")
    odd = disc_and_cup()
    odd[0, 0] = 127
    write(next(given["source"].rglob("n0002.bmp")), odd)
    with pytest.raises(InputError, match=r"n0002\.bmp: found the label value\(s\) \[127\.0\]"):
        made("disc_cup_fundus2fundus", given, tmp_path / "out", partial=True)
    next(given["target"].rglob("drishtiGS_003_cupsegSoftmap.png")).unlink()
    with pytest.raises(InputError, match=r"drishtiGS_003_cupsegSoftmap\.png: no such file"):
        made("disc_cup_fundus2fundus", given, tmp_path / "other", partial=True)
    small = write(tmp_path / "small.png", grey(0, (3, 3)))
    with pytest.raises(InputError, match="found size"):
        combine_masks(write(tmp_path / "disc.png", grey(0)), small)


# Reading


def test_pictures_of_every_kind(tmp_path: Path):
    for name, mode in (("a.png", None), ("a.gif", None), ("a.bmp", None), ("b.png", "1"), ("c.png", "LA")):
        np.testing.assert_array_equal(read_mask(write(tmp_path / name, mask(1), mode)).array, mask(1))
    three = write(tmp_path / "three.png", np.repeat(mask(1)[..., None], 3, axis=2))
    np.testing.assert_array_equal(read_mask(three).array, mask(1))
    with pytest.raises(InputError, match="found colors; wanted one label value per pixel"):
        read_mask(write(tmp_path / "d.png", colour(1)))
    palette = Image.fromarray(colour(1)).quantize(16)
    palette.save(tmp_path / "e.png")
    assert read_picture(tmp_path / "e.png").array.shape == (*SIZE, 3)


def test_unreadable_pictures(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"nothing")
    (tmp_path / "b.ppm.gz").write_bytes(b"nothing")
    for name in ("a.png", "b.ppm.gz", "missing.png"):
        with pytest.raises(InputError, match=f"{name}: cannot be read as a picture"):
            read_picture(tmp_path / name)
    cut = write(tmp_path / "c.png", grey(0, (200, 200)))
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"c\.png: cannot be read as a picture"):
        read_picture(cut)
    pages(tmp_path / "d.tif", [grey(0), grey(1)])
    assert count_pages(tmp_path / "d.tif") == 2
    with pytest.raises(InputError, match=r"d\.tif: cannot read page 2"):
        read_picture(tmp_path / "d.tif", 2)
