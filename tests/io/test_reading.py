# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A folder of DICOM slices in a datalist: seen as the volume that it is, or refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, LoadImaged
from pydicom.uid import generate_uid

from dacal_med.data import Caching, PairedDataset, PairedLoader, check_data, load_datalist, make_dataset
from dacal_med.io import reading
from dacal_med.io.errors import InputError
from dacal_med.io.image import Opened
from dacal_med.io.reading import keep_voxels, read_header, read_image
from tests.deploy.runtime.builders import ball, change, oblique, write_series
from tests.deploy.runtime.test_dicom_seg import tilted
from tests.io.test_dicom import AXIAL, SAGITTAL

ARRAY = ball((7, 6, 5))


@pytest.mark.parametrize("reverse", [False, True], ids=["ordered", "reversed"])
@pytest.mark.parametrize(
    "affine", [AXIAL, SAGITTAL, oblique(), tilted()], ids=["axial", "sagittal", "oblique", "tilted"]
)
def test_every_voxel_is_where_the_slices_say(tmp_path: Path, affine: np.ndarray, reverse: bool):
    write_series(tmp_path / "s", ARRAY, affine, reverse=reverse)
    image = read_image(tmp_path / "s")
    voxels, found = image.array, image.header.affine
    assert read_header(tmp_path / "s").shape == ARRAY.shape
    for index in np.ndindex(ARRAY.shape):
        place = np.linalg.inv(affine) @ found @ [*index, 1]
        np.testing.assert_allclose(place, np.round(place), atol=1e-4)
        assert voxels[(0, *index)] == ARRAY[tuple(np.round(place[:3]).astype(int))]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda files: files[2].unlink(), "wanted evenly spaced slices, none missing"),
        (lambda files: change(files[2], PatientID="another"), "has another patient"),
        (
            lambda files: change(files[2], SeriesInstanceUID=generate_uid()),
            r"found 2 DICOM series .*; wanted a folder of one",
        ),
        (lambda files: change(files[2], FrameOfReferenceUID=generate_uid()), "another frame of reference"),
        (lambda files: [file.unlink() for file in files[1:]], r"found 1 slice\(s\)"),
    ],
    ids=["missing", "two patients", "two series", "two frames of reference", "one slice"],
)
def test_what_is_not_one_whole_series_is_refused(tmp_path: Path, spoil, said: str):
    spoil(write_series(tmp_path / "s", ARRAY, AXIAL))
    with pytest.raises(InputError, match=rf"{tmp_path / 's'}: .*{said}"):
        read_header(tmp_path / "s")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "scan.nii.gz")
    for read in (read_header, read_image):
        with pytest.raises(InputError, match=r"scan\.nii\.gz: found no regular file or folder"):
            read(tmp_path / "scan.nii.gz")


def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is read from now on: ("header" or "voxels", name of the file)."""
    seen: list[tuple[str, str]] = []
    opened = reading.open_image

    def spy(path: str, **options: bool):
        found = opened(path, **options)
        name = Path(path).name
        seen.append(("header", name))

        def voxels():
            seen.append(("voxels", name))
            return found.voxels()

        return Opened(found.header, voxels)

    monkeypatch.setattr(reading, "open_image", spy)
    return seen


def test_a_file_is_read_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    nib.save(nib.Nifti1Image(ARRAY, AXIAL), tmp_path / "a.nii")
    seen = counted(monkeypatch)
    for _ in range(3):
        assert read_header(tmp_path / "a.nii").shape == ARRAY.shape
    assert seen == [("header", "a.nii")]
    nib.save(nib.Nifti1Image(ARRAY[1:], AXIAL), tmp_path / "a.nii")
    assert read_header(tmp_path / "a.nii").shape == (6, 6, 5)


def test_kept_voxels_are_taken_once_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a.nii", "b.nii"):
        nib.save(nib.Nifti1Image(ARRAY, AXIAL), tmp_path / name)
    seen = counted(monkeypatch)
    keep_voxels(0)
    keep_voxels(int(ARRAY.nbytes * 1.5))
    for name in ("a.nii", "b.nii"):  # there is room for one
        read_image(tmp_path / name, keep=True)
    for _ in range(2):
        np.testing.assert_array_equal(read_image(tmp_path / "a.nii").array[0], ARRAY)
    read_image(tmp_path / "b.nii")
    assert [name for kind, name in seen if kind == "voxels"] == ["a.nii", "b.nii", "a.nii", "b.nii"]
    read_image(tmp_path / "a.nii", keep=True)
    keep_voxels(0)
    read_image(tmp_path / "a.nii")
    assert [name for kind, name in seen if kind == "voxels"][4:] == ["a.nii", "a.nii"]


def test_before_the_first_iteration_each_image_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As a bundle's configuration does it: datalist, spacing, checks, cache, data sets, loader."""
    entries = []
    for name in ("s", "t"):
        for number in range(3):
            image, label = f"{name}{number}.nii", f"{name}{number}_label.nii"
            nib.save(nib.Nifti1Image(ARRAY, AXIAL), tmp_path / image)
            nib.save(nib.Nifti1Image((ARRAY > 300).astype(np.uint8), AXIAL), tmp_path / label)
            entries.append({"image": image, "label": label})
    content = {"labels": {"0": "background", "1": "ball"}, "source": entries[:3], "target_train": entries[3:]}
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    seen = counted(monkeypatch)
    datalist = load_datalist(tmp_path)
    spacing = datalist.working_spacing(3)
    check_data(datalist, 3, 1, progress=False)
    caching = Caching(datalist, "auto", tmp_path / "cache", spacing, (4, 4, 4))
    options = {"reader": "dacal_med.io.Reader", "ensure_channel_first": True}
    load = [LoadImaged("image", **options)]
    source = make_dataset(datalist.source, Compose([*load, LoadImaged("label", as_label=True, **options)]), caching)
    target = make_dataset(datalist.target_train, Compose(load), caching)
    batch = next(iter(PairedLoader(PairedDataset(source, target), num_workers=0)))
    assert batch["source"]["image"].shape[1:] == (1, *ARRAY.shape)
    images = [entry["image"] for entry in entries] + [entry["label"] for entry in entries[:3]]
    assert sorted(name for kind, name in seen if kind == "voxels") == sorted(images)
    assert all(seen.count(("header", name)) <= 2 for name in images)  # once by itself, once with the voxels
