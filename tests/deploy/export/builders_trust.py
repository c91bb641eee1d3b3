# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A small data set and an untrained model of it, in the layout of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.networks.nets import UNet

from dacal_med.handlers.weights import save_weights
from tests.conftest import ROOT

TRAIN = ROOT / "bundles" / "dacal_ct2mr" / "configs" / "train.json"
SIZE = 16
OVERRIDES: dict[str, Any] = {"roi_size": [SIZE] * 3, "spacing": [1.0] * 3, "held_out_share": 0.5}


def data_set(folder: Path, sources: int = 4, targets: int = 3) -> Path:
    """Write cubes of different size and place, brighter than their surroundings, with labels for source and val."""
    rng = np.random.default_rng(0)
    entries: dict[str, list[dict[str, str]]] = {"source": [], "target_train": [], "target_val": []}
    for key, count in (("source", sources), ("target_train", targets), ("target_val", 2)):
        for number in range(count):
            label = np.zeros([SIZE] * 3, np.uint8)
            first, size = rng.integers(1, 5, 3), rng.integers(5, 10, 3)
            label[tuple(slice(a, a + n) for a, n in zip(first, size, strict=True))] = 1
            image = (label * 60 + rng.normal(40, 10, label.shape)).astype(np.float32)
            entry = {"image": f"{key}_{number}.nii.gz"}
            folder.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(image, np.eye(4)), folder / entry["image"])
            if key != "target_train":
                entry["label"] = f"{key}_{number}_label.nii.gz"
                nib.save(nib.Nifti1Image(label, np.eye(4)), folder / entry["label"])
            entries[key].append(entry)
    labels = {"labels": {"0": "background", "1": "cube"}, "modality": {"source": "MR", "target": "MR"}}
    (folder / "datalist.json").write_text(json.dumps({**labels, **entries}))
    return folder


def weights(file: Path) -> Path:
    """Write the weights of an untrained network of the bundle's architecture."""
    torch.manual_seed(0)
    network = UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=[8, 16, 32, 64], strides=[2, 2, 2], num_res_units=2
    )
    save_weights(network, file)
    return file
