# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The recipe for any folders: every format, matching by name, patients, label tables, and what it refuses."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from dacal_med.cli import main
from dacal_med.data.datalist import load_datalist
from dacal_med.data.split import hold_out
from dacal_med.io.errors import InputError
from dacal_med.preparation import Request, find_recipe, prepare
from dacal_med.preparation.cases import Volume
from dacal_med.preparation.formats import find_images
from dacal_med.preparation.sets.any_folders import parse_table
from dacal_med.preparation.writing import _write
from tests.preparation.builders import SHAPE, affine_of, checked, holding, made, names, noise, save, values_of
from tests.preparation.test_btcv_chaos import slice_file

LABELS = {"labels": "0=background,1=liver,2=spleen"}
VOLUMES = (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".h5", ".tif", "dicom")
# Oblique, anisotropic, and with right angles, which ITK's formats want.
SIZES = (0.9, 1.8, 3.0)
GRID = np.eye(4)
GRID[:3, :3] = np.reshape(sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.2, -0.1, 0.3).GetMatrix(), (3, 3)) * SIZES
GRID[:3, 3] = (31.0, -12.5, 7.25)
PICTURES = (".png", ".jpg", ".bmp", ".tif", ".gif", ".ppm", ".h5")


def truth() -> np.ndarray:
    return holding([1, 2], SHAPE, np.uint8)


def write_volume(folder: Path, key: str, suffix: str, array: np.ndarray) -> None:
    """A volume ``(x, y, z)`` in any format, with the affine where the format can hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}{suffix}"
    if suffix in (".nii", ".nii.gz"):
        save(path, array, GRID)
    elif suffix in (".mha", ".mhd", ".nrrd"):
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
        image.SetSpacing(SIZES)
        image.SetDirection((np.diag([-1.0, -1.0, 1.0]) @ GRID[:3, :3] / SIZES).ravel().tolist())
        image.SetOrigin((GRID[:3, 3] * (-1, -1, 1)).tolist())
        sitk.WriteImage(image, str(path))
    elif suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["main"] = array.transpose(2, 1, 0)
            file["main"].attrs["element_size_um"] = [3000.0, 1800.0, 900.0]
    elif suffix == ".tif":
        pages = [Image.fromarray(page) for page in array.astype(np.uint8).transpose(2, 1, 0)]
        pages[0].save(path, save_all=True, append_images=pages[1:])
    else:
        for z in range(array.shape[2]):
            slice_file(folder / key / f"{z}.dcm", array[:, :, z].T, 5.0 * z)


def write_picture(folder: Path, key: str, suffix: str, array: np.ndarray) -> None:
    """A picture ``(rows, columns)``."""
    folder.mkdir(parents=True, exist_ok=True)
    if suffix == ".h5":
        with h5py.File(folder / f"{key}.h5", "w") as file:
            file["main"] = array
    else:
        Image.fromarray(array).save(folder / f"{key}{suffix}")


def given(root: Path) -> dict[str, Path]:
    return {name: root / name for name in ("source", "source_labels", "target", "target_labels")}


def volumes(root: Path, suffix: str = ".nii.gz", label: str = ".nii.gz", number: int = 5) -> dict[str, Path]:
    """Folders of volumes and labels, the same names in both domains."""
    for domain in ("source", "target"):
        for index in range(number):
            write_volume(root / domain, f"case{index}", suffix, noise(seed=index) % 200)
            write_volume(root / f"{domain}_labels", f"case{index}", label, truth())
    return given(root)


@pytest.mark.parametrize("suffix", VOLUMES)
def test_volumes_of_every_format(suffix: str, tmp_path: Path):
    label = ".nii.gz" if suffix == "dicom" else suffix
    folders = volumes(tmp_path / "in", suffix, label, 3)
    if suffix == "dicom":  # on the grid of the slices, not on that of the tests' NIfTI
        for path in (tmp_path / "in").glob("*_labels/*"):
            grid = np.diag([-1.5, -1.25, 5.0, 1.0])
            grid[:3, 3] = (20.0, 30.0, 0.0)
            save(path, truth(), grid)
    data = made("folders", folders, tmp_path / "out", **LABELS)
    assert data.class_names == ("background", "liver", "spleen")
    assert names(data.source) == ["source_case0", "source_case1", "source_case2"]
    assert (len(data.target_train), len(data.target_val)) == (2, 1)
    image = values_of(data.source[1]["image"])
    array = noise(seed=1) % 200
    np.testing.assert_array_equal(image, 2 * array - 7 if suffix == "dicom" else array)
    np.testing.assert_array_equal(values_of(data.source[1]["label"]), truth())
    affine = affine_of(data.source[1]["image"])
    wanted = {".h5": np.diag([0.9, 1.8, 3.0, 1.0]), ".tif": np.eye(4)}.get(suffix)
    if suffix == "dicom":
        np.testing.assert_allclose(affine, grid, atol=1e-4)
    else:
        np.testing.assert_allclose(affine, GRID if wanted is None else wanted, atol=1e-5)
    checked(data)


@pytest.mark.parametrize("suffix", PICTURES)
def test_pictures_of_every_format(suffix: str, tmp_path: Path):
    picture, mask = (noise((6, 9)) % 256).astype(np.uint8), holding([1, 2], (6, 9), np.uint8)
    for domain in ("source", "target"):
        for index in range(3):
            write_picture(tmp_path / "in" / domain, f"{index}", suffix, picture)
            write_picture(tmp_path / "in" / f"{domain}_labels", f"{index}", ".h5" if suffix == ".h5" else ".png", mask)
    data = made("folders", given(tmp_path / "in"), tmp_path / "out", **LABELS)
    np.testing.assert_array_equal(values_of(data.source[0]["label"]), mask.T)
    if suffix != ".jpg":
        np.testing.assert_array_equal(values_of(data.source[0]["image"]), picture.T)
    checked(data, dims=2)


def test_sections_of_stacks_are_pictures_of_one_patient(tmp_path: Path):
    array = noise() % 200
    for domain in ("source", "target"):
        for index in range(2):
            write_volume(tmp_path / "in" / domain, f"s{index}", ".tif", array + index)
            write_volume(tmp_path / "in" / f"{domain}_labels", f"s{index}", ".h5", truth())
    data = made("folders", given(tmp_path / "in"), tmp_path / "out", stacks="sections", **LABELS)
    assert names(data.source)[:5] == [f"source_s0_000{page}" for page in range(4)] + ["source_s1_0000"]
    train, val = ({name.rsplit("_", 1)[0] for name in names(part)} for part in (data.target_train, data.target_val))
    assert train | val == {"target_s0", "target_s1"} and not train & val
    assert [case["patient"] for case in data.source] == ["source s0"] * 4 + ["source s1"] * 4
    np.testing.assert_array_equal(values_of(data.source[6]["image"]), array[:, :, 2] + 1)
    np.testing.assert_array_equal(values_of(data.source[0]["label"]), truth()[:, :, 0])
    checked(data, dims=2)


def test_of_a_lone_stack_neighbouring_sections_are_held_out(tmp_path: Path):
    for domain, stacks in (("source", 1), ("target", 2)):
        for index in range(stacks):
            write_volume(tmp_path / "in" / domain, f"s{index}", ".tif", noise((6, 5, 10)) % 200)
            write_volume(tmp_path / "in" / f"{domain}_labels", f"s{index}", ".tif", holding([1, 2], (6, 5, 10)))
    data = made("folders", given(tmp_path / "in"), tmp_path / "out", stacks="sections", **LABELS)
    assert [case["patient"] for case in data.source] == [f"source s0, block {z // 2 + 1}" for z in range(10)]
    first, second = (int(name[-4:]) for name in names(hold_out(data.source)[1]))
    assert first % 2 == 0 and second == first + 1


def test_image_and_label_in_one_hdf5_file(tmp_path: Path):
    for domain in ("source", "target"):
        (tmp_path / domain).mkdir()
        for index in range(3):
            with h5py.File(tmp_path / domain / f"{index}.hdf5", "w") as file:
                file["image"], file["in/label"] = noise((4, 5, 6)), truth().transpose(2, 1, 0)
    both = {name: tmp_path / name.removesuffix("_labels") for name in given(tmp_path)}
    data = made("folders", both, tmp_path / "out", image_array="image", label_array="in/label", **LABELS)
    np.testing.assert_array_equal(values_of(data.source[0]["image"]), noise((4, 5, 6)).transpose(2, 1, 0))
    np.testing.assert_array_equal(values_of(data.source[0]["label"]), truth())
    with pytest.raises(
        InputError, match=r"0\.hdf5: found the array\(s\) image, in/label; wanted one alone, or --image"
    ):
        made("folders", both, tmp_path / "other", **LABELS)
    with pytest.raises(InputError, match=r"wanted mask \(--label-array\)"):
        made("folders", both, tmp_path / "other", image_array="image", label_array="mask", **LABELS)


# Matching, patients, splits


def test_names_are_matched_and_patients_kept_together(tmp_path: Path):
    for domain, ward in (("source", "a"), ("target", "b")):
        for patient in range(5):
            for visit in range(2):
                stem = f"{ward}{patient}-{visit}"
                write_volume(tmp_path / domain, f"scan_{stem}_0000", ".nii.gz", noise())
                write_volume(tmp_path / f"{domain}_labels", f"{stem}_label", ".nii.gz", truth())
    options = {"match": r"([ab]\d-\d)_", "patient": r"([ab]\d)-", **LABELS}
    data = made("folders", given(tmp_path), tmp_path / "out", **options)
    assert [case["patient"] for case in data.source] == [f"a{patient}" for patient in range(5) for _ in range(2)]
    train, val = ({name[12:14] for name in names(part)} for part in (data.target_train, data.target_val))
    assert (len(train), len(val)) == (4, 1) and not train & val
    assert (len(data.target_train), len(data.target_val)) == (8, 2)
    with pytest.raises(InputError, match=r"scan_a0-0_0000\.nii\.gz: its name has nothing like 'c\\\\d'"):
        made("folders", given(tmp_path), tmp_path / "other", **{**options, "patient": r"c\d"})
    with pytest.raises(InputError, match=r"found scan_a0-0_0000.nii.gz and scan_a0-1_0000.nii.gz for a0; wanted one"):
        made("folders", given(tmp_path), tmp_path / "other", **{**options, "match": r"(a\d)"})
    with pytest.raises(InputError, match=r"--match: found '\(', .*wanted a regular expression"):
        made("folders", given(tmp_path), tmp_path / "other", **{**options, "match": "("})


def test_a_patient_of_both_domains_is_refused(tmp_path: Path):
    folders = volumes(tmp_path / "in")
    with pytest.raises(InputError, match=r"patient case\d: found in both 'source' and 'target_"):
        made("folders", folders, tmp_path / "out", patient=r"case\d", **LABELS)
    assert not (tmp_path / "out").exists()


def test_targets_with_few_or_no_labels(tmp_path: Path):
    folders = volumes(tmp_path / "in")
    (folders["target_labels"] / "case1.nii.gz").unlink()
    (folders["target_labels"] / "case3.nii.gz").unlink()
    data = made("folders", folders, tmp_path / "some", **LABELS)
    assert names(data.target_train) == ["target_case1", "target_case3"]
    assert names(data.target_val) == ["target_case0", "target_case2", "target_case4"]
    del folders["target_labels"]
    data = made("folders", folders, tmp_path / "none", **LABELS)
    assert (len(data.target_train), len(data.target_val)) == (5, 0)


def test_labels_of_another_table(tmp_path: Path):
    folders = volumes(tmp_path / "in", number=2)
    for path in folders["target_labels"].iterdir():
        save(path, truth() * 100, GRID)
    options = {"labels": "0=background,1=organ,2=organ", "target_values": "0=background,90-255=organ"}
    data = made("folders", folders, tmp_path / "out", **options)
    np.testing.assert_array_equal(values_of(data.target_val[0]["label"]), truth() > 0)
    np.testing.assert_array_equal(values_of(data.source[0]["label"]), truth() > 0)
    with pytest.raises(
        InputError, match=r"--target-values: found the classes background, liver; wanted those of --lab"
    ):
        made("folders", folders, tmp_path / "other", **{**options, "target_values": "0=background,200=liver"})
    with pytest.raises(InputError, match=r"case0\.nii\.gz: found the label value\(s\) \[2\.0\] in 2 voxel.*only 0, 1"):
        made("folders", folders, tmp_path / "other", labels="0=background,1=organ")


def test_label_tables_by_hand():
    table = parse_table("0=background, 55-70=liver ,63000 = right kidney,71=liver", "--labels")
    assert table.names == {0: "background", 1: "liver", 2: "right kidney"}
    assert table.remap(np.array([0, 55, 70, 71, 63000]), "x").tolist() == [0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"--labels: found ''; wanted VALUE=NAME"),
        ("0=background,liver", "found 'liver'; wanted VALUE=NAME"),
        ("0=background,x=liver", "found 'x=liver'"),
        ("1=liver,0=background", "found the classes liver, background; wanted background first"),
        ("0=background", "wanted background first, then others"),
        ("0=background,1-5=a,3=b", "1-5 and 3 overlap"),
        ("0=background,5-1=a", "empty range"),
    ],
)
def test_other_tables_are_refused(text: str, message: str):
    with pytest.raises(InputError, match=message):
        parse_table(text, "--labels")


# Wrong folders


def test_one_folder_for_both_domains_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = volumes(tmp_path / "in", number=3)
    (tmp_path / "link").symlink_to(folders["source"], target_is_directory=True)
    for target in (folders["source"], tmp_path / "link"):
        words = [f"--source={folders['source']}", f"--source-labels={folders['source_labels']}", f"--target={target}"]
        arguments = ["prepare", "folders", *words, "--labels", LABELS["labels"], "--out", str(tmp_path / "out")]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert f"--source and --target: found {folders['source']} for both; wanted the images of two domains" in error
        assert error.strip().count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_an_image_of_both_domains_is_refused(tmp_path: Path):
    folders = volumes(tmp_path / "in", number=3)
    (folders["target"] / "case1.nii.gz").unlink()
    (folders["target"] / "case1.nii.gz").symlink_to(folders["source"] / "case2.nii.gz")
    with pytest.raises(
        InputError, match=r"source and --target .*target: found case2\.nii\.gz in both \(1 such file\(s\)"
    ):
        made("folders", folders, tmp_path / "out", **LABELS)


def test_labels_and_images_must_go_together(tmp_path: Path):
    folders = volumes(tmp_path / "in")
    (folders["source_labels"] / "case2.nii.gz").unlink()
    with pytest.raises(InputError, match=r"source_labels: found no label for case2; wanted one for each image"):
        made("folders", folders, tmp_path / "out", **LABELS)
    save(folders["source_labels"] / "case2.nii.gz", truth(), GRID)
    save(folders["target_labels"] / "case9.nii.gz", truth())
    with pytest.raises(InputError, match=r"target_labels: found no image for case9"):
        made("folders", folders, tmp_path / "out", **LABELS)


def test_a_label_must_lie_on_its_image(tmp_path: Path):
    folders = volumes(tmp_path / "in", number=2)
    save(folders["source_labels"] / "case0.nii.gz", truth()[:-1])
    with pytest.raises(InputError, match=r"case0\.nii\.gz"):
        made("folders", folders, tmp_path / "out", **LABELS)


def test_pictures_and_volumes_in_one_list_are_refused(tmp_path: Path):
    folders = volumes(tmp_path / "in", number=2)
    write_picture(folders["target"], "photo", ".png", np.zeros((4, 5), np.uint8))
    write_picture(folders["target_labels"], "photo", ".png", np.zeros((4, 5), np.uint8))
    with pytest.raises(InputError, match=r"photo\.png: found an image of 2 axes, while .*case0.nii.gz has 3; wanted"):
        made("folders", folders, tmp_path / "out", **LABELS)


def find(folder: Path) -> list[str]:
    return [file.key for file in find_images(folder, array="", option="--x", sections=False, labels=True)]


def test_what_is_no_image(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        find(tmp_path / "missing")
    with pytest.raises(InputError, match="found nothing; wanted images: NIfTI"):
        find(tmp_path)
    (tmp_path / "notes.txt").write_text("beside")
    write_volume(tmp_path, "a", ".mhd", truth())
    assert find(tmp_path) == ["a"]
    for name, message in (
        ("b.docx", "found a file type that cannot be read; wanted NIfTI"),
        ("b.h5", "cannot be read as HDF5"),
        ("b.mha", "cannot be read as MetaImage"),
        ("b.tif", "cannot be read as a picture"),
        ("b.nii", "cannot be read as NIfTI"),
    ):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(InputError, match=rf"{name}: {message}"):
            find(tmp_path)
        (tmp_path / name).unlink()
    (tmp_path / "series").mkdir()
    with pytest.raises(InputError, match=r"found 0 DICOM series"):
        find(tmp_path)


def test_images_of_other_shapes_are_refused(tmp_path: Path):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5), np.uint8)), str(tmp_path / "flat.mha"))
    with pytest.raises(InputError, match=r"flat\.mha: found shape \(5, 4, 1\); wanted a 3D volume of one channel"):
        find(tmp_path)
    (tmp_path / "flat.mha").unlink()
    save(tmp_path / "cine.nii", noise((4, 5, 3, 2)))
    with pytest.raises(InputError, match=r"cine\.nii: found shape \(4, 5, 3, 2\); wanted a 3D volume of one channel"):
        find(tmp_path)
    (tmp_path / "cine.nii").unlink()
    with h5py.File(tmp_path / "many.h5", "w") as file:
        file["main"] = np.zeros((2, 3, 4, 5))
    with pytest.raises(InputError, match=r"many\.h5: found main of shape \(2, 3, 4, 5\) and type float64"):
        find(tmp_path)


@pytest.mark.parametrize(("kind", "written"), [("f2", np.float32), ("?", np.uint8), ("i8", np.int32)])
def test_values_that_nifti_does_not_hold_are_kept(tmp_path: Path, kind: str, written: type):
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    path = _write(Volume(array, np.eye(4)), tmp_path / "a")
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), array)
    assert nib.load(path).get_data_dtype() == written


def test_values_beyond_32_bits_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"found values from 0 to 79100000000; wanted 32 bits"):
        _write(Volume(np.array([[[0, 79_100_000_000]]]), np.eye(4)), tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_voxel_sizes_that_are_none_are_refused(tmp_path: Path):
    folders = volumes(tmp_path / "in", ".h5", ".h5", number=2)
    with h5py.File(folders["source"] / "case0.h5", "a") as file:
        file["main"].attrs["element_size_um"] = [1.0, 0.0, 1.0]
    with pytest.raises(
        InputError, match=r"case0\.h5: found element_size_um = \[1\.0, 0\.0, 1\.0\]; wanted three sizes"
    ):
        made("folders", folders, tmp_path / "out", **LABELS)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folders = volumes(tmp_path / "in", ".mha", ".mha", number=3)
    words = [f"--{name.replace('_', '-')}={folder}" for name, folder in folders.items() if name != "target_labels"]
    assert main(["prepare", "folders", *words, "--labels", LABELS["labels"], "--out", str(tmp_path / "out")]) == 0
    assert "| target_val | 0 | 0 | 0 | 0 | 0 |" in capsys.readouterr().out
    assert len(load_datalist(tmp_path / "out").target_train) == 3
    text = (tmp_path / "out" / "dataset.md").read_text()
    assert "labels = 0=background,1=liver,2=spleen" in text and "whoever owns the images" in text
    assert main(["prepare", "folders", *words, "--out", str(tmp_path / "other")]) == 2
    assert "--labels: found ''; wanted VALUE=NAME" in capsys.readouterr().err


def test_folders_that_are_missing_or_too_many_are_refused(tmp_path: Path):
    recipe = find_recipe("folders")
    chosen = {choice.name: choice.default for choice in recipe.choices} | LABELS
    for names_given in (["source", "target"], ["source", "source_labels", "target", "mask"]):
        with pytest.raises(
            InputError, match=r"folders: found the folders .*; wanted \['source', 'source_labels', 'targ"
        ):
            prepare(recipe, Request(dict.fromkeys(names_given, tmp_path), chosen), tmp_path / "out", progress=False)


def test_umlauts_in_two_normal_forms_are_one_name_and_folders_have_any_name(tmp_path: Path):
    """Images from Linux, labels from macOS; no part of a path is a pattern or a comment."""
    root = tmp_path / "a#1 [x], 'y'"
    folders = volumes(root, number=4)
    for domain, person in (("source", "Müller"), ("target", "Zoë")):
        for folder, form in ((domain, "NFC"), (f"{domain}_labels", "NFD")):
            for path in list(folders[folder].iterdir()):
                path.rename(path.with_name(unicodedata.normalize(form, path.name.replace("case", f"{person} "))))
    pattern = unicodedata.normalize("NFD", r"(?:Müller|Zoë) \d")
    data = made("folders", folders, tmp_path / "out#1 [x]", patient=pattern, **LABELS)
    assert len(data.source) == 4
    assert {entry["patient"] for entry in data.source} == {f"Müller {index}" for index in range(4)}
    np.testing.assert_array_equal(values_of(data.source[3]["label"]), truth())
    assert str(data.root) == str(tmp_path / "out#1 [x]")
