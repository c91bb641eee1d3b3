# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A phantom data set, so that every command works before any data has been found.

Unpaired anatomies are drawn for each domain and written as NIfTI with a ``datalist.json``: labelled CT as the source,
unlabelled MR as the target, and a few labelled MR for evaluation.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

from dacal_med.data.datalist import FILE_NAME
from dacal_med.data.phantom_anatomy import LABELS, Abdomen
from dacal_med.data.phantom_rendering import render_ct, render_mr
from dacal_med.errors import InputError

PARAMETERS_FILE = "phantom.json"
_VERSION = 1  # raise whenever the same parameters would give other voxels
_CT_STREAM, _MR_STREAM = 0, 1


@dataclass(frozen=True)
class _Parameters:
    """What determines every voxel; kept beside the images to tell whether they are the wanted ones."""

    version: int
    seed: int
    num_source: int
    num_target_train: int
    num_target_val: int
    image_size: tuple[int, ...]
    spacing_mm: float

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "image_size": list(self.image_size)}


def ensure_phantom(
    folder: str | Path,
    seed: int = 0,
    num_source: int = 24,
    num_target_train: int = 16,
    num_target_val: int = 8,
    image_size: Sequence[int] = (72, 56, 40),
    spacing_mm: float = 5.0,
) -> str:
    """Generate the phantom data set once.

    The folder appears complete or not at all: it is built beside its final place and renamed, so that several processes
    may call this at the same time. A later call with the same parameters returns at once.

    Args:
        folder: where the data set shall be; parents are created.
        seed: the same seed and sizes give the same voxels.
        num_source: labelled CT images.
        num_target_train: unlabelled MR images.
        num_target_val: labelled MR images for evaluation.
        image_size: voxels along right-left, front-back and head-foot.
        spacing_mm: nominal voxel size; CT and MR differ from it by some per cent per case and axis.

    Returns:
        The folder, ``~`` expanded, ready for :func:`dacal_med.data.datalist.load_datalist`.

    Raises:
        InputError: the folder holds something else, or a phantom made with other parameters.
        ValueError: a count or size is not positive.
    """
    place = Path(folder).expanduser()
    size = tuple(int(n) for n in image_size)
    counts = (num_source, num_target_train, num_target_val)
    if len(size) != 3 or min(size) < 8 or spacing_mm <= 0 or min(counts[:2]) < 1 or num_target_val < 0:
        raise ValueError(
            f"image_size={size}, spacing_mm={spacing_mm}, image counts={counts}: wanted three sizes of at least 8 "
            "voxels, a positive spacing, and at least one image to train on per domain."
        )
    parameters = _Parameters(
        _VERSION, int(seed), int(num_source), int(num_target_train), int(num_target_val), size, float(spacing_mm)
    )
    if _is_complete(place, parameters):
        return str(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{place.name}.building-", dir=place.parent))
    try:
        _build(building, parameters)
        building.chmod(0o755)  # mkdtemp's folder is private, a data set is not
        try:
            if place.is_dir():
                place.rmdir()  # only an empty folder can be here, or another process has just finished
            os.rename(building, place)
        except OSError:
            if not _is_complete(place, parameters):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return str(place)


def _is_complete(place: Path, parameters: _Parameters) -> bool:
    """Whether the data set is there; raises where something else is."""
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return False
    note = place / PARAMETERS_FILE
    if not note.is_file() or not (place / FILE_NAME).is_file():
        raise InputError(f"{place}: exists but holds no complete phantom; wanted an empty or absent folder.")
    try:
        found = json.loads(note.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{note}: not valid JSON ({error}); delete the folder to make the phantom again.") from error
    wanted = parameters.as_json()
    if found != wanted:
        raise InputError(
            f"{place}: holds a phantom made with {found}; wanted {wanted}. Choose another folder or delete this one."
        )
    return True


def _build(folder: Path, parameters: _Parameters) -> None:
    seed, size, spacing = parameters.seed, parameters.image_size, parameters.spacing_mm
    lists: dict[str, list[dict[str, str]]] = {"source": [], "target_train": [], "target_val": []}
    for index in range(parameters.num_source):
        rng = np.random.default_rng([seed, _CT_STREAM, index])
        lists["source"].append(_case(folder, f"ct_{index:03d}", _ct_affine(size, spacing, rng), size, render_ct, rng))
    for index in range(parameters.num_target_train + parameters.num_target_val):
        rng = np.random.default_rng([seed, _MR_STREAM, index])
        labelled = index >= parameters.num_target_train
        case = _case(folder, f"mr_{index:03d}", _mr_affine(size, spacing, rng), size, render_mr, rng, labelled=labelled)
        lists["target_val" if labelled else "target_train"].append(case)
    (folder / PARAMETERS_FILE).write_text(json.dumps(parameters.as_json(), indent=2) + "\n", encoding="utf-8")
    datalist = {
        "name": "Phantom abdomen, CT to MR",
        "labels": {str(value): name for value, name in LABELS.items()},
        "spacing_mm": spacing,
        "modality": {"source": "CT", "target": "MR"},
        **lists,
    }
    (folder / FILE_NAME).write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")


def _case(
    folder: Path,
    name: str,
    affine: np.ndarray,
    size: tuple[int, ...],
    render: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    rng: np.random.Generator,
    *,
    labelled: bool = True,
) -> dict[str, str]:
    voxels = np.indices(size, dtype=np.float64)
    points = np.tensordot(affine[:3, :3], voxels, axes=1) + affine[:3, 3].reshape(3, 1, 1, 1)
    # The anatomy sits at the centre of the grid wherever the scanner's origin is.
    middle = affine[:3, :3] @ ((np.asarray(size) - 1) / 2) + affine[:3, 3]
    anatomy = Abdomen(points - middle.reshape(3, 1, 1, 1), rng)
    domain = name.split("_")[0]
    entry = {"image": f"{domain}/images/{name}.nii.gz"}
    _save(folder / entry["image"], render(anatomy.tissue, rng), affine)
    if labelled:
        entry["label"] = f"{domain}/labels/{name}.nii.gz"
        _save(folder / entry["label"], anatomy.labels, affine)
    return entry


def _save(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)


def _ct_affine(size: tuple[int, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Stored left, posterior, superior; square pixels and a slice distance of their own per case."""
    pixel = spacing * rng.uniform(0.94, 1.06)
    affine = np.diag([-pixel, -pixel, spacing * rng.uniform(0.95, 1.1), 1.0])
    return _place(affine, size, rng)


def _mr_affine(size: tuple[int, ...], spacing: float, rng: np.random.Generator) -> np.ndarray:
    """Stored right, anterior, superior, slightly oblique."""
    sizes = spacing * rng.uniform(0.94, 1.08, 3)
    turn = Rotation.from_euler("xyz", rng.uniform(-5, 5, 3), degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * sizes
    return _place(affine, size, rng)


def _place(affine: np.ndarray, size: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Put the grid's centre at a random table position, as scanners do."""
    centre = rng.uniform(-60, 60, 3)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.asarray(size) - 1) / 2)
    return np.round(affine, 6)
