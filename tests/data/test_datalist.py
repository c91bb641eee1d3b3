# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The datalist: what is read, and every way in which it may be wrong."""

from __future__ import annotations

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dacal_med.data.datalist import load_datalist
from dacal_med.io.errors import InputError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def shared_set(name: str) -> Path:
    folder = SHARED / name
    if not (folder / "datalist.json").is_file():
        pytest.skip(f"real data not found at {folder}")
    return folder


def write_volume(path: Path, value: float = 0.0, spacing: tuple[float, ...] = (1.0, 2.0, 3.0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((4, 5, 6), value, np.float32), np.diag([*spacing, 1.0])), path)


@pytest.fixture
def content(tmp_path: Path) -> dict[str, Any]:
    for name, value in (("a", -500.0), ("b", -500.0), ("t", 10.0), ("u", 10.0), ("v", 0.0)):
        write_volume(tmp_path / f"{name}.nii.gz", value)
        write_volume(tmp_path / "labels" / f"{name}.nii.gz")
    return {
        "labels": {"0": "background", "7": "thing", "255": "Ignore"},
        "source": [{"image": f"{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in "ab"],
        "target_train": [{"image": "t.nii.gz"}, {"image": "u.nii.gz", "label": "labels/u.nii.gz"}],
        "target_val": [{"image": "v.nii.gz", "label": "labels/v.nii.gz"}],
    }


def write(folder: Path, content: Any) -> Path:
    (folder / "datalist.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_reads_classes_paths_and_modality(tmp_path: Path, content: dict[str, Any]) -> None:
    datalist = load_datalist(write(tmp_path, content))
    assert datalist.class_names == ("background", "thing")
    assert datalist.label_values == (0, 7)
    assert datalist.ignore_values == (255,)
    assert datalist.num_classes == 2
    assert datalist.modality == {"source": "CT", "target": "MR"}
    assert datalist.source[0]["label"] == str(tmp_path / "labels" / "a.nii.gz")
    assert [len(datalist.source), len(datalist.target_train), len(datalist.target_val)] == [2, 2, 1]
    assert load_datalist(tmp_path / "datalist.json") == datalist


def test_labels_of_target_train_are_dropped(tmp_path: Path, content: dict[str, Any]) -> None:
    assert all(set(entry) == {"image"} for entry in load_datalist(write(tmp_path, content)).target_train)


def test_groups_are_kept(tmp_path: Path, content: dict[str, Any]) -> None:
    content["target_val"][0]["group"] = " site a "
    for entry, name in zip(content["target_train"], ("site a", "site b"), strict=True):
        entry["group"] = name
    datalist = load_datalist(write(tmp_path, content))
    assert [entry["group"] for entry in datalist.target_val] == ["site a"]
    assert [entry["group"] for entry in datalist.target_train] == ["site a", "site b"]
    assert all("group" not in entry for entry in datalist.source)


def test_patients_are_kept_and_need_not_be_everywhere(tmp_path: Path, content: dict[str, Any]) -> None:
    content["source"][1]["patient"] = " p 1 "
    content["target_train"][0]["patient"] = "p 1"  # both scanners saw them; nothing of them is evaluated
    content["target_val"][0]["patient"] = "p 2"
    datalist = load_datalist(write(tmp_path, content))
    entries = (*datalist.source, *datalist.target_train, *datalist.target_val)
    assert [entry.get("patient") for entry in entries] == [None, "p 1", "p 1", None, "p 2"]


@pytest.mark.parametrize("key", ["source", "target_train"])
def test_an_evaluated_patient_is_not_trained_on(tmp_path: Path, content: dict[str, Any], key: str) -> None:
    content[key][1]["patient"] = "p 1"
    content["target_val"][0]["patient"] = "p 1 "
    message = rf"datalist\.json: patient 'p 1' is in both '{key}' and 'target_val' \(1 such patient\(s\)\); wanted"
    with pytest.raises(InputError, match=message):
        load_datalist(write(tmp_path, content))


@pytest.mark.parametrize("part", ["group", "patient"])
@pytest.mark.parametrize("name", ["", "  ", 3, None, ["a"]])
def test_groups_and_patients_that_are_no_names(tmp_path: Path, content: dict[str, Any], part: str, name: Any) -> None:
    content["source"][1][part] = name
    with pytest.raises(InputError, match=rf"'source'\[1\] has the {part} .*; wanted a non-empty name"):
        load_datalist(write(tmp_path, content))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        *(("gruop", "group"), ("groups", "group"), ("Group", "group")),
        *(("patients", "patient"), ("Patient", "patient"), ("patient_id", "patient")),
    ],
)
def test_a_group_or_patient_under_another_key(tmp_path: Path, content: dict[str, Any], key: str, meant: str) -> None:
    content["source"][0][key] = "site a"
    with pytest.raises(InputError, match=rf"'source'\[0\] has the key '{key}'; did you mean '{meant}'\?"):
        load_datalist(write(tmp_path, content))


@pytest.mark.parametrize("key", ["source", "target_train"])
def test_an_evaluated_image_is_not_trained_on_by_another_path(
    tmp_path: Path, content: dict[str, Any], key: str
) -> None:
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
    content[key][0]["image"] = "other/v.nii.gz"
    with pytest.raises(InputError, match=rf"v\.nii\.gz is in both '{key}' and 'target_val'"):
        load_datalist(write(tmp_path, content))


def test_a_group_for_every_image_or_none(tmp_path: Path, content: dict[str, Any]) -> None:
    content["source"][1]["group"] = "site a"
    with pytest.raises(InputError, match=r"'source'\[0\] has no 'group', but 'source'\[1\] has one"):
        load_datalist(write(tmp_path, content))


@pytest.mark.parametrize("absent", ["missing", None, []])
def test_target_val_may_be_absent(tmp_path: Path, content: dict[str, Any], absent: Any) -> None:
    if absent == "missing":
        del content["target_val"]
    else:
        content["target_val"] = absent
    assert load_datalist(write(tmp_path, content)).target_val == ()


def test_given_modality_name_and_spacing_win(tmp_path: Path, content: dict[str, Any]) -> None:
    content |= {"name": "Mine", "spacing_mm": 3, "modality": {"source": "MR"}}
    datalist = load_datalist(write(tmp_path, content))
    assert (datalist.name, datalist.spacing) == ("Mine", (3.0,))
    assert datalist.modality == {"source": "MR", "target": "MR"}
    assert datalist.working_spacing(3) == (3.0, 3.0, 3.0)


def test_spacing_per_axis_must_fit_the_network(tmp_path: Path, content: dict[str, Any]) -> None:
    datalist = load_datalist(write(tmp_path, content | {"spacing_mm": [1, 2, 3]}))
    assert datalist.working_spacing(3) == (1.0, 2.0, 3.0)
    with pytest.raises(InputError, match=r"spacing_mm.*3 numbers; wanted 1 or 2"):
        datalist.working_spacing(2)


def test_median_spacing_of_training_images_in_patient_axes(tmp_path: Path, content: dict[str, Any]) -> None:
    # Stored superior-first: file axes (5, 1, 2) mm are 1, 2 and 5 mm along right, anterior and superior.
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 5.0, -1.0, 2.0, 1.0
    for name in ("a", "b", "t"):
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 6), np.float32), turned), tmp_path / f"{name}.nii.gz")
    write_volume(tmp_path / "v.nii.gz", spacing=(50.0, 50.0, 50.0))
    content["modality"] = {"source": "CT", "target": "MR"}
    assert load_datalist(write(tmp_path, content)).working_spacing(3) == (1.0, 2.0, 5.0)


def test_pictures_are_rgb_with_unit_spacing(tmp_path: Path) -> None:
    for name in ("s", "t"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "l.png")
    content = {
        "labels": {"0": "a", "1": "b"},
        "source": [{"image": "s.png", "label": "l.png"}],
        "target_train": [{"image": "t.png"}],
    }
    datalist = load_datalist(write(tmp_path, content))
    assert datalist.modality == {"source": "RGB", "target": "RGB"}
    assert datalist.working_spacing(2) == (1.0, 1.0)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"datalist\.json: not found"):
        load_datalist(tmp_path)


def test_malformed_json_gives_the_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 3"):
        load_datalist(write(tmp_path, '{\n"labels": {},\n"source": [}\n'))


def test_binary_file(tmp_path: Path) -> None:
    (tmp_path / "datalist.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_datalist(tmp_path)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"labels": None}, "'labels' is None"),
    ({"labels": {"0": "a"}}, "names 1 class"),
    ({"labels": {"x": "a", "1": "b"}}, "'x'; wanted integers"),
    ({"labels": {"0": "a", "1": "a"}}, "name.*more than once"),
    ({"labels": {"0": "a", "1": " "}}, "label '1' is named"),
    ({"labels": {"1": "a", "01": "b", "2": "c"}}, "value 1 twice"),
    ({"source": []}, "'source' is empty"),
    ({"source": {"image": "a.nii.gz"}}, "wanted a list"),
    ({"source": [{"image": "a.nii.gz"}]}, r"'source'\[0\] has no 'label'"),
    ({"source": ["a.nii.gz"]}, r"'source'\[0\] is 'a.nii.gz'"),
    ({"source": [{"image": "a.nii.gz", "label": "./a.nii.gz"}]}, r"'source'\[0\] has .*a.nii.gz' for both"),
    ({"target_train": []}, "'target_train' is empty"),
    ({"target_train": [{"image": "nowhere.nii.gz"}]}, "do not exist: .*nowhere.nii.gz"),
    ({"target_train": [{"image": "t.nii.gz"}, {"image": "./t.nii.gz"}]}, "more than once"),
    ({"target_train": [{"image": "v.nii.gz"}]}, "both 'target_train' and 'target_val'"),
    ({"target_val": [{"image": "a.nii.gz", "label": "labels/a.nii.gz"}]}, "both 'source' and 'target_val'"),
    ({"target_val": [{"image": "v.nii.gz"}]}, r"'target_val'\[0\] has no 'label'"),
    ({"spacing_mm": 0}, "'spacing_mm' is 0"),
    ({"spacing_mm": ["1"]}, "'spacing_mm'"),
    ({"modality": "CT"}, "'modality' is 'CT'"),
    ({"modality": {"sauce": "CT"}}, "'modality'"),
    ({"spacing": 3}, "'spacing'; did you mean 'spacing_mm'"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_content(tmp_path: Path, content: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_datalist(write(tmp_path, content | change))
    assert "datalist.json" in str(error.value)


@pytest.mark.parametrize("key", ["labels", "source", "target_train"])
def test_missing_key(tmp_path: Path, content: dict[str, Any], key: str) -> None:
    del content[key]
    with pytest.raises(InputError, match=f"missing the key.*{key}"):
        load_datalist(write(tmp_path, content))


def test_misspelt_key(tmp_path: Path, content: dict[str, Any]) -> None:
    content["target_vall"] = content.pop("target_val")
    with pytest.raises(InputError, match="did you mean 'target_val'"):
        load_datalist(write(tmp_path, content))


@pytest.mark.parametrize(
    ("name", "dims", "classes", "counts", "modality", "spacing"),
    [
        ("sts_ct2mr", 3, 2, (26, 14, 11), ("CT", "MR"), (3.0, 3.0, 3.0)),
        ("hippocampus_site2site", 3, 2, (120, 24, 16), ("MR", "MR"), (1.0, 1.0, 1.0)),
        ("camvid_day2dusk", 2, 11, (145, 76, 40), ("RGB", "RGB"), (1.0, 1.0)),
    ],
)
def test_real_sets(
    name: str,
    dims: int,
    classes: int,
    counts: tuple[int, ...],
    modality: tuple[str, str],
    spacing: tuple[float, ...],
) -> None:
    datalist = load_datalist(shared_set(name))
    assert datalist.num_classes == classes
    assert (len(datalist.source), len(datalist.target_train), len(datalist.target_val)) == counts
    assert (datalist.modality["source"], datalist.modality["target"]) == modality
    assert datalist.working_spacing(dims) == pytest.approx(spacing, abs=1e-3)


ODD = [
    "a#b",
    "[x]",
    "a b",
    "a,b",
    "a'b",
    'a"b',
    "müller",
    "脳",
    "a\\b",
    "~x",
    " a ",
    "{}",
    "2024",
    "@a",
    "$a",
    "%a",
    "a::b",
    "*",
]


@pytest.mark.parametrize("name", ODD)
def test_a_folder_and_an_image_of_any_name_are_those_that_are_named(tmp_path: Path, name: str) -> None:
    for folder in ("", "other"):  # and no other of a similar name
        write_volume(tmp_path / folder / name / f"{name}.nii.gz")
        write_volume(tmp_path / folder / name / f"{name}_.nii.gz", 1.0)
        write_volume(tmp_path / folder / name / "label.nii.gz")
    image = f"{name}/{name}.nii.gz"
    content = {
        "labels": {"0": "background", "1": "thing"},
        "source": [{"image": image, "label": f"{name}/label.nii.gz"}],
        "target_train": [{"image": f"{name}/{name}_.nii.gz"}],
    }
    for folder in (tmp_path, tmp_path / "other"):
        root = write(
            folder / name,
            {**content, "source": [{"image": f"{name}.nii.gz", "label": "label.nii.gz"}]}
            | {"target_train": [{"image": f"{name}_.nii.gz"}]},
        )
        (entry,) = load_datalist(root).source
        assert entry["image"] == str(folder / name / f"{name}.nii.gz")
        assert load_datalist(write(folder, content)).source[0]["image"] == str(folder / image)


@pytest.mark.parametrize(("written", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_umlauts_in_the_other_normal_form_are_found(tmp_path: Path, content: dict[str, Any], written: str, there: str):
    on_disk, name = (unicodedata.normalize(form, "Müller, Zoë") for form in (there, written))
    assert on_disk != name
    write_volume(tmp_path / on_disk / "in" / f"{on_disk}.nii.gz")
    content["target_train"][0] = {"image": f"{name}/in/{name}.nii.gz"}
    datalist = load_datalist(write(tmp_path, content))
    assert datalist.target_train[0]["image"] == str(tmp_path / on_disk / "in" / f"{on_disk}.nii.gz")
    # The very name comes first, and of two that it may stand for none is taken.
    write_volume(tmp_path / name / "in" / f"{name}.nii.gz")
    datalist = load_datalist(tmp_path)
    assert datalist.target_train[0]["image"] == str(tmp_path / name / "in" / f"{name}.nii.gz")
    content["target_train"][0] = {"image": "e\u0301\u00e9.nii.gz"}
    for other in ("\u00e9\u00e9", "e\u0301e\u0301"):
        write_volume(tmp_path / f"{other}.nii.gz")
    with pytest.raises(InputError, match=r"names files that do not exist: .*'target_train'\[0\], image"):
        load_datalist(write(tmp_path, content))
    # A data set that was named on a command line of the other form.
    folder = tmp_path / f"{on_disk} set"
    shutil.copytree(tmp_path, folder, ignore=shutil.ignore_patterns(f"{on_disk} set"))
    content["target_train"][0] = {"image": "t.nii.gz"}
    write(folder, content)
    assert load_datalist(tmp_path / f"{name} set").root == folder


def test_a_patient_in_two_normal_forms_is_one(tmp_path: Path, content: dict[str, Any]) -> None:
    content["target_val"][0]["patient"] = unicodedata.normalize("NFC", "Müller")
    content["source"][0]["patient"] = unicodedata.normalize("NFD", "Müller")
    with pytest.raises(InputError, match="is in both 'source' and 'target_val'"):
        load_datalist(write(tmp_path, content))


def test_separators_of_windows_are_understood_where_no_file_has_that_name(tmp_path: Path, content: dict[str, Any]):
    content["source"][0]["label"] = "labels\\a.nii.gz"
    assert load_datalist(write(tmp_path, content)).source[0]["label"] == str(tmp_path / "labels" / "a.nii.gz")
    write_volume(tmp_path / "labels\\a.nii.gz")
    assert load_datalist(tmp_path).source[0]["label"] == str(tmp_path / "labels\\a.nii.gz")
    content["source"][0]["label"] = "C:\\labels\\a.nii.gz"
    with pytest.raises(InputError, match=r"'source'\[0\], label\); wanted paths from this folder, with '/'"):
        load_datalist(write(tmp_path, content))


def test_a_home_is_understood_where_no_file_has_that_name(tmp_path: Path, content: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "labels"))
    content["target_train"][0] = {"image": "~/t.nii.gz"}
    assert load_datalist(write(tmp_path, content)).target_train[0]["image"] == str(tmp_path / "labels" / "t.nii.gz")
    write_volume(tmp_path / "~" / "t.nii.gz")
    assert load_datalist(tmp_path).target_train[0]["image"] == str(tmp_path / "~" / "t.nii.gz")
