# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Training, preparation and a clinical site read every odd file alike: the voxels that it was written from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImaged
from PIL import Image

from dacal_med.io.discovery import discover
from dacal_med.io.errors import InputError
from dacal_med.io.reading import read_header
from dacal_med.preparation import find_recipe, prepare
from dacal_med.preparation.recipe import Request
from tests.io.corpus import PICTURES, REFUSED, VOLUMES, Odd

Found = tuple[np.ndarray, np.ndarray | None]
CHOICES = {"labels": "0=background,1=organ", "target_values": "", "match": "", "patient": "", "stacks": "volumes"}
CHOICES |= {"image_array": "", "label_array": ""}


def in_training(place: Path, folder: Path) -> Found:
    """As the bundles' configurations load an image."""
    loaded = LoadImaged("image", reader="dacal_med.io.Reader", ensure_channel_first=True)({"image": str(place)})[
        "image"
    ]
    return loaded.numpy(), loaded.affine.numpy()


def at_a_site(place: Path, folder: Path) -> Found:
    """As an exported model finds an image in a folder that holds nothing else."""
    alone = folder / "alone"
    alone.mkdir()
    for path in [place] if place.is_dir() else sorted(place.parent.glob(f"{place.stem.removesuffix('.nii')}.*")):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, alone / path.name)
    dims = 2 if read_header(place).affine is None else 3
    (source,) = discover(alone, dims, identify=False)
    opened = source.open()
    return opened.voxels(), opened.header.affine


def in_preparation(place: Path, folder: Path) -> Found:
    """As ``prepare folders`` writes it, read by nibabel and Pillow."""
    header = read_header(place)
    folders = {name: folder / "given" / name for name in ("source", "source_labels", "target")}
    for path in folders.values():
        path.mkdir(parents=True)
    key = "one"
    if place.is_dir() or place.suffix == ".dcm":
        shutil.copytree(place if place.is_dir() else place.parent, folders["source"] / key)
    else:
        key = place.name.split(".")[0]
        for path in place.parent.glob(f"{key}.*"):
            shutil.copy(path, folders["source"] / path.name)
    label, other = np.zeros(header.shape, np.uint8), np.full((4, 5, 3), 7, np.int16)
    if header.affine is None:
        Image.fromarray(label.T).save(folders["source_labels"] / f"{key}.png")
        Image.fromarray(other[..., 0].astype(np.uint8)).save(folders["target"] / "t.png")
    else:
        nib.save(nib.Nifti1Image(label, header.affine), folders["source_labels"] / f"{key}.nii.gz")
        nib.save(nib.Nifti1Image(other, np.eye(4)), folders["target"] / "t.nii.gz")
    prepare(find_recipe("folders"), Request(folders, CHOICES), folder / "out")
    (written,) = (folder / "out" / "source" / "images").iterdir()
    if header.affine is None:
        rows = np.asarray(Image.open(written))
        return np.atleast_3d(rows).transpose(2, 1, 0), None
    image = nib.load(written)
    scale = {"meter": 1e3, "micron": 1e-3}.get(image.header.get_xyzt_units()[0], 1.0)
    return np.asarray(image.dataobj)[None], np.diag([scale] * 3 + [1.0]) @ image.affine


USERS: list[Callable[[Path, Path], Found]] = [in_training, in_preparation, at_a_site]


def assert_same_places(found: Found, wanted: Odd) -> None:
    """Every voxel that was written lies where it was written, whatever the order of the axes that were read."""
    array, affine = found
    assert affine is not None
    assert wanted.affine is not None
    assert array.shape[0] == wanted.array.shape[0]
    indices = np.indices(wanted.array.shape[1:]).reshape(3, -1)
    full = np.vstack([indices, np.ones(indices.shape[1])])
    places = (np.linalg.inv(affine) @ wanted.affine @ full)[:3]
    np.testing.assert_allclose(places, np.rint(places), atol=5e-3)
    x, y, z = np.rint(places).astype(int)
    assert array[0].size == wanted.array[0].size
    assert min(x.min(), y.min(), z.min()) == 0
    np.testing.assert_allclose(array[:, x, y, z], wanted.array.reshape(len(array), -1), rtol=1e-6)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", VOLUMES)
def test_volumes(kind: str, user: Callable[[Path, Path], Found], tmp_path: Path):
    wanted = VOLUMES[kind](tmp_path)
    assert_same_places(user(wanted.place, tmp_path), wanted)
    header = read_header(wanted.place)
    assert header.modality == wanted.modality
    assert (wanted.note in " ".join(header.notes)) if wanted.note else (not header.notes or "tilt" in header.notes[0])


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures(kind: str, user: Callable[[Path, Path], Found], tmp_path: Path):
    wanted = PICTURES[kind](tmp_path)
    np.testing.assert_array_equal(user(wanted.place, tmp_path)[0], wanted.array)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(kind: str, user: Callable[[Path, Path], Found], tmp_path: Path):
    write, said = REFUSED[kind]
    written = write(tmp_path)
    place = written.place if isinstance(written, Odd) else written
    with pytest.raises((InputError, ValueError), match=said) as refusal:
        user(place, tmp_path)
    assert isinstance(refusal.value, InputError) or user is at_a_site  # where two series are two cases
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out" / "datalist.json").exists()
