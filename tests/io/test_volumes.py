# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Files as volumes, and images that no model can be run on."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
from PIL import Image

from dacal_med.io.errors import InputError
from dacal_med.io.volumes import Volume, check, read_file
from tests.deploy.runtime.builders import LPS, ball, oblique


def test_nifti(tmp_path: Path):
    array = ball((4, 5, 6))
    nib.save(nib.Nifti1Image(array, oblique()), tmp_path / "a.nii.gz")
    volume = read_file(tmp_path / "a.nii.gz", "it")
    np.testing.assert_array_equal(volume.array[0], array)
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-5)
    assert (volume.format, volume.shape, volume.modality) == ("nifti", (4, 5, 6), None)
    np.testing.assert_allclose(volume.spacing, (1.5, 0.8, 2.5), atol=1e-5)
    assert volume.voxel_volume_mm3 == pytest.approx(3.0, abs=1e-5)


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior"])
def test_nrrd_in_its_space(tmp_path: Path, space: str):
    affine = oblique() if space.startswith("right") else LPS @ oblique()
    header = {"space": space, "space directions": affine[:3, :3].T, "space origin": affine[:3, 3]}
    nrrd.write(str(tmp_path / "a.nrrd"), ball((4, 5, 6)), header)
    volume = read_file(tmp_path / "a.nrrd", "it")
    np.testing.assert_array_equal(volume.array[0], ball((4, 5, 6)))
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-9)


def test_nrrd_in_another_space(tmp_path: Path):
    header = {"space": "left-anterior-superior", "space directions": np.eye(3), "space origin": np.zeros(3)}
    nrrd.write(str(tmp_path / "a.nrrd"), ball((4, 5, 6)), header)
    with pytest.raises(InputError, match="found space 'left-anterior-superior'"):
        read_file(tmp_path / "a.nrrd", "it")


def test_pictures_are_width_by_height(tmp_path: Path):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    volume = read_file(tmp_path / "a.png", "it")
    np.testing.assert_array_equal(volume.array[0], pixels.T)
    assert (volume.affine, volume.spacing, volume.voxel_volume_mm3) == (None, (1.0, 1.0), 1.0)


def test_a_stack_of_pictures_is_not_cut_to_its_first(tmp_path: Path):
    page = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page, page])
    with pytest.raises(InputError, match="it: found a stack of 3 pictures"):
        read_file(tmp_path / "a.tif", "it")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.png"])
def test_damaged_files_name_themselves(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"it: cannot be read as (nifti|nrrd|picture)"):
        read_file(tmp_path / name, "it")


def checked(
    array: np.ndarray, affine: np.ndarray | None = None, modality: str | None = None, force: bool = False
) -> Volume:
    volume = Volume(array, np.eye(4) if affine is None else affine, "nifti", modality)
    check(volume, "it", 3, 1, "CT", force)
    return volume


def filled(value: float) -> np.ndarray:
    array = ball((4, 5, 6)).astype(np.float32)[None]
    array[0, 1, 2, 3] = value
    return array


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((1, 4, 0, 3)), r"it: found size \(4, 0, 3\)"),
        (np.full((1, 4, 4, 3), 7), "it: found the one value 7"),
        (filled(np.nan), r"it: found 1 voxel\(s\) that are NaN or infinite"),
        (filled(np.inf), r"it: found 1 voxel\(s\) that are NaN or infinite"),
        (np.full((1, 4, 4, 3), np.nan), r"it: found 48 voxel\(s\)"),
        (filled(0)[0], "it: found 2 spatial axes; this model wants 3"),
        (np.repeat(filled(0), 2, 0), r"it: found 2 channel\(s\); this model wants 1"),
    ],
    ids=["empty", "constant", "nan", "infinite", "all nan", "axes", "channels"],
)
def test_images_without_use(array: np.ndarray, match: str):
    with pytest.raises(InputError, match=match):
        checked(array)


def test_values_are_looked_at_in_every_chunk(monkeypatch):
    monkeypatch.setattr("dacal_med.io.volumes._CHUNK_VOXELS", 10)
    with pytest.raises(InputError, match=r"found 1 voxel"):
        checked(filled(np.nan))
    checked(filled(1.0))


def test_affines():
    flat = np.eye(4)
    flat[:3, 2] = flat[:3, 1]
    with pytest.raises(InputError, match="axes lie in one plane"):
        checked(filled(1.0), flat)
    with pytest.raises(InputError, match="voxel sizes"):
        checked(filled(1.0), np.diag([1.0, 0.0, 1.0, 1.0]))
    assert checked(filled(1.0), oblique()).warnings == []
    sheared = np.eye(4)
    sheared[1, 2] = np.tan(np.radians(10))
    assert "10.0 degrees from orthogonal" in checked(filled(1.0), sheared).warnings[0]


def test_another_modality():
    with pytest.raises(InputError, match="found modality MR; this model is made for CT; --force true"):
        checked(filled(1.0), modality="MR")
    assert "because of --force" in checked(filled(1.0), modality="MR", force=True).warnings[0]
    assert checked(filled(1.0), modality="CT").warnings == []
