# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Malformed images through everything that reads one: checks of a data set, loading for training, a site."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, LoadImaged, Orientationd, Spacingd
from PIL import Image

from dacal_med.data import check_data, load_datalist
from dacal_med.io import Reader
from tests.deploy.runtime.builders import export_folder, inference
from tests.fuzz.images import (
    AFFINE,
    SHAPE,
    good_array,
    nifti_files,
    nrrd_files,
    picture_files,
)
from tests.fuzz.outcomes import FROM_BELOW, attempt, in_time

VOLUMES = {**nifti_files(), **nrrd_files()}
PICTURES = picture_files()
FILES = {**VOLUMES, **PICTURES}


def data_set(folder: Path, suffix: str, content: bytes, role: str = "image") -> tuple[Path, str]:
    """A data set that is good but for one file; returns its folder and the name of that file."""
    picture = suffix not in (".nii", ".nii.gz", ".nrrd")
    for name in ("source", "label"):
        array = good_array() if name == "source" else (good_array() > 300).astype(np.uint8)
        if picture:
            Image.fromarray((array[:, :, 0] % 251).astype(np.uint8)).save(folder / f"{name}.png")
        else:
            nib.save(nib.Nifti1Image(array, AFFINE), folder / f"{name}.nii")
    own = ".png" if picture else ".nii"
    bad = f"damaged{suffix}"
    (folder / bad).write_bytes(content)
    entries = {
        "image": {"source": [{"image": f"source{own}", "label": f"label{own}"}], "target_train": [{"image": bad}]},
        "label": {
            "source": [{"image": f"source{own}", "label": bad}],
            "target_train": [{"image": f"label{own}"}],
        },
    }
    datalist = {"labels": {"0": "background", "1": "organ"}, "modality": {"source": "MR", "target": "MR"}}
    (folder / "datalist.json").write_text(json.dumps({**datalist, **entries[role]}))
    return folder, bad


def loaded_for_training(folder: Path, dims: int) -> torch.Tensor | None:
    """What the training pipeline makes of the damaged image, None where the check refuses it."""
    datalist = load_datalist(folder)
    check_data(datalist, dims, 1, progress=False)
    spacing = datalist.working_spacing(dims)
    steps: list[object] = [LoadImaged("image", reader=Reader(), ensure_channel_first=True, image_only=True)]
    steps += [Orientationd("image", "RAS", labels=None), Spacingd("image", spacing, mode="bilinear")]
    return Compose(steps)({"image": datalist.target_train[0]["image"]})["image"]


@pytest.mark.parametrize("what", FILES)
def test_an_image_is_refused_or_can_be_trained_on(what, tmp_path):
    suffix, content = FILES[what]
    folder, bad = data_set(tmp_path, suffix, content)
    found = attempt(lambda: loaded_for_training(folder, 3 if what in VOLUMES else 2), bad)
    if found is not None:
        assert found.shape[0] == 1
        assert min(found.shape) >= 1
        assert bool(torch.isfinite(found).all())
        assert found.numel() < 2**24


@pytest.mark.parametrize("what", [name for name in FILES if "cut" in name or "changed" in name or "type" in name])
def test_a_label_is_refused_or_fits_its_image(what, tmp_path):
    suffix, content = FILES[what]
    folder, bad = data_set(tmp_path, suffix, content, role="label")
    summary = attempt(lambda: check_data(load_datalist(folder), 3 if what in VOLUMES else 2, 1, progress=False), bad)
    if summary is not None:
        assert sum(summary.label_voxels.values()) == int(np.prod(SHAPE if what in VOLUMES else SHAPE[:2]))


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "nrrd", "pictures"])
def test_a_site_tells_what_is_wrong_with_each_case(kind, tmp_path):
    files = (
        PICTURES if kind == "pictures" else {name: VOLUMES[name] for name in VOLUMES if VOLUMES[name][0] == f".{kind}"}
    )
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    for number, (suffix, content) in enumerate(files.values()):
        (place / f"{number:03d}{suffix}").write_bytes(content)
    bundle = {"bundle": "dacal_em", "names": ("background", "m"), "spacing": (1.0, 1.0), "roi_size": (16, 16)}
    folder = export_folder(tmp_path / "site", **(bundle if kind == "pictures" else {}))
    with in_time(120):
        summary = inference(folder, place, out).run()
    assert len(summary["cases"]) == len(files)
    for what, case in zip(files, summary["cases"], strict=True):
        written = sorted(path.name for path in out.glob(f"{case['case']}*"))
        if case["status"] == "ok":
            assert written == sorted(
                [f"{case['case']}.json", case["outputs"]["segmentation"], case["outputs"]["confidence"]]
            )
            array = (
                nib.load(out / case["outputs"]["confidence"]).get_fdata()
                if kind != "pictures"
                else np.asarray(Image.open(out / case["outputs"]["confidence"])) / 255
            )
            assert np.isfinite(array).all(), what
            assert 0.4 < array.min() <= array.max() <= 1.0, what
        else:
            assert written == [f"{case['case']}.json"]
            assert not re.match(FROM_BELOW, case["error"]), (what, case["error"])
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
