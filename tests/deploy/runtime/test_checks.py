# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Images that no model can be run on, and those that it is run on with a warning."""

from __future__ import annotations

import numpy as np
import pytest

from dacal_med.deploy.runtime.checks import check_header, check_voxels
from dacal_med.io.errors import InputError
from dacal_med.io.image import Header, usable_affine
from tests.deploy.runtime.builders import ball, oblique


def checked(
    array: np.ndarray, affine: np.ndarray | None = None, modality: str | None = None, force: bool = False
) -> list[str]:
    place = usable_affine(np.eye(4) if affine is None else affine, "it")
    header = Header(array.shape[1:], len(array), place, "nifti", modality)
    warnings = check_header(header, "it", 3, 1, "CT", force)
    check_voxels(array, "it")
    return warnings


def filled(value: float) -> np.ndarray:
    array = ball((4, 5, 6)).astype(np.float32)[None]
    array[0, 1, 2, 3] = value
    return array


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.zeros((1, 4, 0, 3)), r"it: found size \(1, 4, 0, 3\)"),
        (np.full((1, 4, 4, 3), 7), "it: found the one value 7"),
        (filled(np.nan), r"it: found 1 voxel\(s\) that are NaN or infinite"),
        (filled(np.inf), r"it: found 1 voxel\(s\) that are NaN or infinite"),
        (np.full((1, 4, 4, 3), np.nan), r"it: found 48 voxel\(s\)"),
        (filled(0)[0], "it: found 2 spatial axes; this model wants 3"),
        (np.repeat(filled(0), 2, 0), r"it: found 2 channel\(s\); this model wants 1"),
    ],
    ids=["empty", "constant", "nan", "infinite", "all nan", "axes", "channels"],
)
def test_images_without_use(array: np.ndarray, match: str):
    with pytest.raises(InputError, match=match):
        checked(array)


def test_values_are_looked_at_in_every_chunk(monkeypatch):
    monkeypatch.setattr("dacal_med.deploy.runtime.checks._CHUNK_VOXELS", 10)
    with pytest.raises(InputError, match=r"found 1 voxel"):
        checked(filled(np.nan))
    checked(filled(1.0))


def test_affines():
    flat = np.eye(4)
    flat[:3, 2] = flat[:3, 1]
    with pytest.raises(InputError, match="axes lie in one plane"):
        checked(filled(1.0), flat)
    with pytest.raises(InputError, match="voxel sizes"):
        checked(filled(1.0), np.diag([1.0, 0.0, 1.0, 1.0]))
    assert checked(filled(1.0), oblique()) == []
    sheared = np.eye(4)
    sheared[1, 2] = np.tan(np.radians(10))
    assert "10.0 degrees from orthogonal" in checked(filled(1.0), sheared)[0]


def test_another_modality():
    with pytest.raises(InputError, match="found modality MR; this model is made for CT; --force true"):
        checked(filled(1.0), modality="MR")
    assert "because of --force" in checked(filled(1.0), modality="MR", force=True)[0]
    assert checked(filled(1.0), modality="CT") == []
