# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Phantom data sets, so that every command works before any data has been found.

Unpaired cases are drawn for each of two domains and written as NIfTI or PNG with a ``datalist.json``: labelled ones as
the source, unlabelled ones as the target, and a few labelled target cases for evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image

from dacal_med.data.datalist import FILE_NAME
from dacal_med.data.generated import generate_once
from dacal_med.data.phantom_kinds import KINDS, PhantomKind
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path

PARAMETERS_FILE = "phantom.json"
_VERSION = 1  # raise whenever the same parameters would give other voxels


@dataclass(frozen=True)
class _Parameters:
    """What determines every voxel; kept beside the images to tell whether they are the wanted ones."""

    version: int
    seed: int
    num_source: int
    num_target_train: int
    num_target_val: int
    image_size: tuple[int, ...]
    spacing_mm: float | None
    kind: str

    def as_json(self) -> dict[str, Any]:
        content = {**asdict(self), "image_size": list(self.image_size)}
        if self.kind == "abdomen":
            del content["kind"]  # as phantoms were noted when there was one kind
        return content


def ensure_phantom(
    folder: str | Path,
    seed: int = 0,
    num_source: int = 24,
    num_target_train: int = 16,
    num_target_val: int = 8,
    image_size: Sequence[int] | None = None,
    spacing_mm: float | None = None,
    kind: str = "abdomen",
) -> str:
    """Generate a phantom data set once.

    The folder appears complete or not at all: it is built beside its final place and renamed, so that several processes
    may call this at the same time. A later call with the same parameters returns at once.

    Args:
        folder: where the data set shall be; parents are created.
        seed: the same seed and sizes give the same voxels.
        num_source: labelled images of the source.
        num_target_train: unlabelled images of the target.
        num_target_val: labelled images of the target for evaluation.
        image_size: voxels along right-left, front-back and head-foot, or rows and columns; None for the kind's own.
        spacing_mm: nominal voxel size; cases differ from it by some per cent. None for the kind's own; pictures have
            none.
        kind: "abdomen" (CT to MR), "prostate" (T2 MR, site to site), "brain_tumour" (T2 to T1 MR), "mitochondria"
            (electron microscopy), "disc_cup" or "vessels" (fundus photographs).

    Returns:
        The folder, ``~`` expanded, ready for :func:`dacal_med.data.datalist.load_datalist`.

    Raises:
        InputError: the folder holds something else, or a phantom made with other parameters; ``kind`` is unknown.
        ValueError: a count or size is not positive.
    """
    if kind not in KINDS:
        raise InputError(f"phantom kind: found {kind!r}, wanted one of {list(KINDS)}")
    place = given_path(folder, "phantom", home=True)
    size = tuple(int(n) for n in (KINDS[kind].image_size if image_size is None else image_size))
    spacing = KINDS[kind].spacing_mm if spacing_mm is None else float(spacing_mm)
    counts = (num_source, num_target_train, num_target_val)
    axes = len(KINDS[kind].image_size)
    no_scale = KINDS[kind].spacing_mm is None
    wrong_spacing = spacing is not None and (no_scale or spacing <= 0)
    if len(size) != axes or min(size) < 8 or wrong_spacing or min(counts[:2]) < 1 or num_target_val < 0:
        raise ValueError(
            f"image_size={size}, spacing_mm={spacing_mm}, image counts={counts}: wanted "
            f"{'two' if no_scale else 'three'} sizes of at least 8 voxels, "
            f"{'no' if no_scale else 'a positive'} spacing, and at least one image to train on per domain."
        )
    parameters = _Parameters(
        _VERSION, int(seed), int(num_source), int(num_target_train), int(num_target_val), size, spacing, kind
    )
    return generate_once(
        place, parameters.as_json(), lambda folder: _build(folder, parameters), "phantom", PARAMETERS_FILE
    )


def _build(folder: Path, parameters: _Parameters) -> None:
    kind = KINDS[parameters.kind]
    spacing = kind.spacing(parameters.spacing_mm)
    lists: dict[str, list[dict[str, str]]] = {"source": [], "target_train": [], "target_val": []}
    for index in range(parameters.num_source):
        lists["source"].append(_case(folder, kind, 0, index, parameters, labelled=True))
    for index in range(parameters.num_target_train + parameters.num_target_val):
        labelled = index >= parameters.num_target_train
        case = _case(folder, kind, 1, index, parameters, labelled=labelled)
        lists["target_val" if labelled else "target_train"].append(case)
    datalist: dict[str, Any] = {
        "name": kind.title,
        "labels": {str(value): name for value, name in kind.labels.items()},
    }
    if spacing:
        datalist["spacing_mm"] = spacing[0] if len(set(spacing)) == 1 else list(spacing)
    if kind.modality is not None:
        datalist["modality"] = dict(zip(("source", "target"), kind.modality, strict=True))
    (folder / FILE_NAME).write_text(json.dumps({**datalist, **lists}, indent=2) + "\n", encoding="utf-8")


def _case(
    folder: Path, kind: PhantomKind, domain: int, index: int, parameters: _Parameters, *, labelled: bool
) -> dict[str, str]:
    rng = np.random.default_rng([parameters.seed, domain, index])
    drawn = kind.draw(domain, parameters.image_size, kind.spacing(parameters.spacing_mm), rng)
    name, suffix = kind.domains[domain], "png" if drawn.affine is None else "nii.gz"
    entry = {"image": f"{name}/images/{name}_{index:03d}.{suffix}"}
    _save(folder / entry["image"], drawn.image, drawn.affine)
    if labelled:
        entry["label"] = f"{name}/labels/{name}_{index:03d}.{suffix}"
        _save(folder / entry["label"], drawn.labels, drawn.affine)
    return entry


def _save(path: Path, array: np.ndarray, affine: np.ndarray | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if affine is None:
        Image.fromarray(array).save(path)
        return
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
