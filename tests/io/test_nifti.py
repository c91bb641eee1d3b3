# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Results carry the forms, codes and units of the NIfTI that they are of."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, Invertd, LoadImaged, Orientationd, SaveImaged, Spacingd

from tests.deploy.runtime.builders import export_folder, inference
from tests.io.corpus import VOLUMES

KINDS = [kind for kind in VOLUMES if kind.startswith("NIfTI")]
FIELDS = ("qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
FIELDS += ("srow_x", "srow_y", "srow_z")


def assert_same_forms(path: Path, original: Path) -> None:
    found, wanted = nib.load(path), nib.load(original)
    for field in FIELDS:
        np.testing.assert_array_equal(found.header[field], wanted.header[field], err_msg=field)
    np.testing.assert_array_equal(found.header["pixdim"][:4], wanted.header["pixdim"][:4])
    assert found.header.get_xyzt_units()[0] == wanted.header.get_xyzt_units()[0]
    np.testing.assert_array_equal(found.affine, wanted.affine)
    assert found.shape == wanted.shape
    assert bytes(found.header["descrip"]).strip(b"\0") == b""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spacing = (0.8, 0.9, 2.5)
    return export_folder(tmp_path_factory.mktemp("site") / "site", spacing=spacing, roi_size=(16, 16, 16))


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_a_site(kind: str, site: Path, tmp_path: Path):
    wanted = VOLUMES[kind](tmp_path)
    summary = inference(site, wanted.place, tmp_path / "out").run()
    (case,) = summary["cases"]
    assert case["status"] == "ok", case["error"]
    assert wanted.note in " ".join(case["warnings"])
    for kind_of_result in ("segmentation", "confidence"):
        assert_same_forms(tmp_path / "out" / case["outputs"][kind_of_result], wanted.place)


@pytest.mark.parametrize("kind", KINDS)
def test_results_of_a_bundle(kind: str, tmp_path: Path):
    wanted = VOLUMES[kind](tmp_path)
    preprocessing = Compose(
        [
            LoadImaged("image", reader="dacal_med.io.Reader", ensure_channel_first=True),
            Orientationd("image", "RAS", labels=None),
            Spacingd("image", (1.0, 1.0, 1.0)),
        ]
    )
    item = preprocessing({"image": str(wanted.place)})
    item["pred"] = item["image"].clone()
    save = SaveImaged("pred", writer="dacal_med.io.Writer", output_dir=tmp_path / "out", output_postfix="seg")
    Compose([Invertd("pred", preprocessing, "image", nearest_interp=False), save])(item)
    (result,) = (tmp_path / "out").rglob("*.nii.gz")
    assert_same_forms(result, wanted.place)
