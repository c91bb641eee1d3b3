# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""An output folder as the site's inference writes it, with the images and labels of its cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from dacal_med.deploy.runtime.trust import TrustAccumulator

NAMES = ("background", "organ")
MODEL = {"name": "A model", "version": "1.2.3", "sha256": "ab" * 32}
AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def site_folder(
    root: Path,
    confidences: Sequence[float] = (0.9, 0.6, 0.8),
    dims: int = 3,
    failed: bool = True,
    names: Sequence[str] = NAMES,
    background: int | None = 0,
    **changes: Any,
) -> Path:
    """Write cases whose organ is found with the given confidences, from left to right in images of 12 x 10 (x 6).

    The truth of each is the organ shifted by one voxel along the first axis.

    Returns:
        The output folder; images are in ``images``, labels in ``labels`` beside it.
    """
    out = root / "out"
    for name in ("out", "images", "labels"):
        (root / name).mkdir(parents=True)
    for number, confidence in enumerate(confidences, 1):
        name = f"case_{number:04d}"
        size = (12, 10, 6)[:dims]
        mask = np.zeros(size, bool)
        mask[(slice(3, 9), slice(2, 8), slice(1, 5))[:dims]] = True
        truth = np.roll(mask, 1, axis=0)
        p = np.where(mask, confidence, 0.02).astype(np.float32)
        volume, unit = (2.0, "ml") if dims == 3 else (1.0, "pixels")
        trust = TrustAccumulator(names, volume, background=background, unit=unit)
        trust.update(torch.from_numpy(np.stack([1 - p, p])))
        suffix = ".nii.gz" if dims == 3 else ".png"
        save(out / f"{name}_seg{suffix}", mask.astype(np.uint8))
        save(out / f"{name}_confidence{suffix}", np.maximum(p, 1 - p) if dims == 3 else 255 * np.maximum(p, 1 - p))
        save(root / "images" / f"scan{number}{suffix}", 100 * mask + 10.0 * number)
        save(root / "labels" / f"scan{number}{suffix}", truth.astype(np.uint8))
        case = {"case": name, "status": "ok", "error": None, "warnings": [], "model": MODEL, "trust": trust.result()}
        case["input"] = {"format": "nifti", "shape": list(size), "spacing_mm": [1, 1, 2][:dims], "modality": None}
        case["outputs"] = {
            "segmentation": f"{name}_seg{suffix}",
            "dicom_seg": None,
            "confidence": f"{name}_confidence{suffix}",
        }
        write(out / f"{name}.json", {**case, "seconds": 1.0, **changes})
    if failed:
        case = {"case": "case_0099", "status": "failed", "error": "the series: slices are <missing>", "warnings": []}
        nothing = {"segmentation": None, "dicom_seg": None, "confidence": None}
        write(out / "case_0099.json", {**case, "input": None, "model": MODEL, "trust": None, "outputs": nothing})
    write(out / "summary.json", {"cases": []})
    return out


def save(path: Path, array: np.ndarray) -> None:
    if path.suffix == ".png":
        Image.fromarray(np.rint(array).astype(np.uint8).T).save(path)
    else:
        nib.save(nib.Nifti1Image(array if array.dtype == np.uint8 else array.astype(np.float32), AFFINE), path)


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
