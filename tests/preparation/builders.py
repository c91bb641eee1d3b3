# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny folders in the layouts of the owners, and what every recipe must fulfil."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from dacal_med.data.checking import CheckSummary, check_data
from dacal_med.data.datalist import Datalist, load_datalist
from dacal_med.io.reading import read_image
from dacal_med.preparation import Request, find_recipe, prepare

SHAPE = (6, 5, 4)
# Oblique, left-handed and anisotropic, so that a lost axis, sign or spacing shows.
AFFINE = np.array([[-0.9, 0.1, 0.0, 31.0], [0.1, 1.8, 0.2, -12.5], [0.0, -0.2, 3.0, 7.25], [0.0, 0.0, 0.0, 1.0]])


def noise(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-500, 500, shape).astype(np.int16)


def holding(values: list[int], shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> np.ndarray:
    """Zeros, then the values in turn: value ``i`` stands in ``i + 1`` voxels, so that no two are confused."""
    array = np.zeros(shape, dtype)
    flat = [value for index, value in enumerate(values) for _ in range(index + 1)]
    array.flat[: len(flat)] = flat
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def hashes(*folders: Path) -> dict[str, str]:
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def made(
    name: str, folders: Mapping[str, Path], out: Path, *, partial: bool = False, seed: int = 0, **choices: str
) -> Datalist:
    """Prepare quietly, check that the originals were left alone, and load the result."""
    recipe = find_recipe(name)
    chosen = {choice.name: choices.get(choice.name, choice.default) for choice in recipe.choices}
    before = hashes(*folders.values())
    prepare(recipe, Request(dict(folders), chosen, seed, partial), out, progress=False)
    assert hashes(*folders.values()) == before
    return load_datalist(out)


def checked(datalist: Datalist, channels: int = 1, dims: int = 3) -> CheckSummary:
    return check_data(datalist, dims, channels, progress=False)


def names(entries: Any, part: str = "image") -> list[str]:
    return [Path(entry[part]).name.split(".")[0] for entry in entries]


def values_of(path: str) -> np.ndarray:
    """The voxels of a volume ``(x, y, z)``, or of a picture ``(columns, rows)``."""
    return read_image(path).array[0]


def affine_of(path: str) -> np.ndarray:
    affine = read_image(path).header.affine
    assert affine is not None
    return affine
