# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The guess from position: closed forms, any size of image, 2D and 3D."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dacal_med.io.errors import InputError
from scripts import position_baseline as baseline

ROOT = Path(__file__).parents[2]


def corner(size: int, dims: int) -> torch.Tensor:
    """Class 1 in the first half along every axis, 0 elsewhere."""
    label = torch.zeros(1, *[size] * dims, dtype=torch.uint8)
    label[(0, *[slice(size // 2)] * dims)] = 1
    return label


@pytest.mark.parametrize("dims", [2, 3])
def test_the_prior_is_the_share_of_images_at_each_relative_position(dims):
    labels = [corner(8, dims), corner(16, dims), torch.zeros(1, *[8] * dims, dtype=torch.uint8)]
    prior = baseline.position_prior(labels, 2, grid=4)
    # Two of three images, and a tenth of an image shared by the two classes.
    assert prior[0, 1][(0,) * dims] == pytest.approx(2.05 / 3.1)
    assert prior[0, 1][(3,) * dims] == pytest.approx(0.05 / 3.1)
    assert torch.allclose(prior.sum(dim=1), torch.ones(1, *[4] * dims))


def test_the_guess_has_the_image_s_size_and_the_gain_scales_the_odds():
    prior = torch.tensor([0.8, 0.2]).view(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert baseline.guess(prior, (5, 7), 1.0).shape == (1, 2, 5, 7)
    assert baseline.guess(prior, (5, 7), 2.0)[0, 1, 2, 3] == pytest.approx(0.4 / 1.2)


def test_ignored_voxels_say_nothing():
    label = corner(8, 2)
    label[0, 4:] = 255
    prior = baseline.position_prior([label], 2, grid=2)
    assert prior[0, :, 1, 1].tolist() == pytest.approx([0.5, 0.5])


def test_no_image_is_an_error():
    with pytest.raises(InputError, match="no labelled source image"):
        baseline.position_prior([], 2)


def test_it_finds_an_object_that_never_moves(tmp_path, capsys):
    import nibabel as nib
    import numpy as np

    entries = []
    for index in range(3):
        for kind, array in (("image", np.zeros((8, 8, 8), np.float32)), ("label", corner(8, 3)[0].numpy())):
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{kind}_{index}.nii.gz")
        entries.append({"image": f"image_{index}.nii.gz", "label": f"label_{index}.nii.gz"})
    content = {
        "labels": {"0": "background", "1": "thing"},
        "source": entries[:1],
        "target_train": [{"image": entries[1]["image"]}],
        "target_val": entries[2:],
    }
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    config = ROOT / "bundles" / "dacal_ct2mr" / "configs" / "train.json"
    assert baseline.main(["--config_file", str(config), "--dataset_dir", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["dice"] == pytest.approx(1.0)
