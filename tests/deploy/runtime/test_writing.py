# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Images written slab by slab are those that nibabel and Pillow read, whole or absent."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from dacal_med.deploy.runtime import writing
from dacal_med.io.image import Header
from tests.deploy.runtime.builders import oblique


def write(path: Path, array: np.ndarray, affine: np.ndarray, cuts: list[int]) -> None:
    with writing.nifti(path, Header(array.shape, 1, affine, "nrrd"), array.dtype.type) as writer:
        for slab in np.split(array, cuts, axis=-1):
            writer.add(slab)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_nifti(tmp_path: Path, dtype: type):
    array = np.random.default_rng(0).integers(0, 9, (4, 3, 7)).astype(dtype)
    write(tmp_path / "a.nii.gz", array, oblique(), [2, 5])
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), array)
    np.testing.assert_allclose(image.affine, oblique(), atol=1e-5)
    np.testing.assert_allclose(image.get_qform(), oblique(), atol=1e-5)
    assert image.get_data_dtype() == dtype
    write(tmp_path / "b.nii.gz", array, oblique(), [1])
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_shear_is_kept_where_it_can_be(tmp_path: Path):
    affine = np.eye(4)
    affine[0, 2] = 0.3
    write(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.uint8), affine, [1])
    image = nib.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(image.affine, affine, atol=1e-6)
    assert image.header["qform_code"] == 0


def test_a_picture(tmp_path: Path):
    values = np.random.default_rng(0).random((5, 4)).astype(np.float32)
    with writing.picture(tmp_path / "a.png", 255) as writer:
        writer.add(values[:, :3])
        writer.add(values[:, 3:])
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.rint(values.T * 255).astype(np.uint8))


def test_what_fails_leaves_nothing(tmp_path: Path):
    image = Header((2, 2, 2), 1, np.eye(4), "nrrd")
    with pytest.raises(RuntimeError), writing.nifti(tmp_path / "a.nii.gz", image, np.uint8) as writer:
        writer.add(np.zeros((2, 2, 1), np.uint8))
        raise RuntimeError
    with pytest.raises(RuntimeError), writing.picture(tmp_path / "a.png", 1):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
