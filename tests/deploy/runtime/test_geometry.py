# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Resampling slab by slab is MONAI's, and right through any affine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd, ScaleIntensityd, Spacingd

from dacal_med.deploy.runtime import geometry
from dacal_med.deploy.runtime.geometry import Preprocessing, resample, resampled
from dacal_med.io.errors import InputError
from tests.deploy.runtime.builders import oblique


def preprocessing(spacing: Sequence[float]) -> Compose:
    return Compose(
        [
            LoadImaged(keys="image"),
            Orientationd(keys="image", axcodes="RAS", labels=None),
            Spacingd(keys="image", pixdim=list(spacing), mode="bilinear"),
            ScaleIntensityd(keys="image"),
        ]
    )


def reader(image: torch.Tensor):
    return lambda box: image[(slice(None), *box)]


@st.composite
def affines(draw: st.DrawFn, shear: bool = False) -> np.ndarray:
    """Any order and direction of axes, rotated, of any voxel size; sheared as by a gantry tilt."""
    order = draw(st.permutations(range(3)))
    signs = [draw(st.sampled_from([-1.0, 1.0])) for _ in range(3)]
    sizes = [draw(st.floats(0.5, 4.0)) for _ in range(3)]
    base = np.eye(3)[:, list(order)] * np.array(signs)
    angle = draw(st.floats(-0.5, 0.5))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    tilt = np.eye(3)
    if shear:
        tilt[1, 2] = draw(st.floats(-0.4, 0.4))
    affine = np.eye(4)
    affine[:3, :3] = turn @ base @ tilt @ np.diag(sizes)
    affine[:3, 3] = [draw(st.floats(-100, 100)) for _ in range(3)]
    return affine


shapes = st.tuples(*[st.integers(2, 9)] * 3)
spacings = st.tuples(*[st.floats(0.7, 3.0)] * 3)


@settings(max_examples=40)
@given(affine=affines(), shape=shapes, spacing=spacings)
def test_the_grid_and_its_values_are_those_of_the_bundle(affine, shape, spacing):
    image = torch.rand(1, *shape)
    steps = Compose(preprocessing(spacing).transforms[1:3])
    wanted = steps({"image": MetaTensor(image, affine=torch.as_tensor(affine))})["image"]
    grid = Preprocessing.of(preprocessing(spacing)).grid(shape, affine)
    assert grid.shape == tuple(wanted.shape[1:])
    np.testing.assert_allclose(grid.affine, wanted.affine, atol=1e-9)
    found = resampled(reader(image), shape, 1, grid.to_image, grid.shape)
    torch.testing.assert_close(found, wanted.as_tensor(), atol=2e-5, rtol=0)


@settings(max_examples=40)
@given(affine=affines(shear=True), shape=shapes, spacing=spacings)
def test_a_linear_field_arrives_where_it_is_in_the_patient(affine, shape, spacing):
    # Linear interpolation reproduces a linear function of the position exactly, so that any wrong place shows.
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1)
    slope = np.array([0.3, -0.2, 0.5])
    field = torch.as_tensor(((index @ affine[:3, :3].T + affine[:3, 3]) @ slope)[None], dtype=torch.float64)
    grid = Preprocessing.of(preprocessing(spacing)).grid(shape, affine)
    there = resampled(reader(field.float()), shape, 1, grid.to_image, grid.shape)
    places = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), -1)
    wanted = (places @ grid.affine[:3, :3].T + grid.affine[:3, 3]) @ slope
    in_image = places @ grid.to_image[:3, :3].T + grid.to_image[:3, 3]
    inside = ((in_image >= 0) & (in_image <= np.array(shape) - 1)).all(-1)
    np.testing.assert_allclose(there[0].numpy()[inside], wanted[inside], atol=1e-3)
    # And the way back, from the exact field on the grid.
    exact = torch.as_tensor(wanted[None], dtype=torch.float32)
    back = resampled(reader(exact), grid.shape, 1, grid.from_image, shape)
    on_grid = index @ grid.from_image[:3, :3].T + grid.from_image[:3, 3]
    covered = ((on_grid >= 0) & (on_grid <= np.array(grid.shape) - 1)).all(-1)
    np.testing.assert_allclose(back[0].numpy()[covered], field[0].numpy()[covered], atol=1e-3)


def test_slabs_give_what_the_whole_gives(monkeypatch):
    image, affine = torch.rand(2, 13, 11, 17), oblique()
    grid = Preprocessing.of(preprocessing((1.0, 1.3, 0.9))).grid(image.shape[1:], affine)
    assert len(list(geometry.slabs(grid.shape, 2, 2, grid.to_image))) == 1
    whole = resampled(reader(image), image.shape[1:], 2, grid.to_image, grid.shape)
    monkeypatch.setattr(geometry, "SLAB_BYTES", 1)
    assert len(list(geometry.slabs(grid.shape, 2, 2, grid.to_image))) == grid.shape[2]
    slabwise = resampled(reader(image), image.shape[1:], 2, grid.to_image, grid.shape)
    torch.testing.assert_close(slabwise, whole, atol=1e-5, rtol=0)


def test_a_flip_and_a_permutation_copy_voxels_exactly():
    image = torch.rand(1, 4, 5, 6)
    affine = np.zeros((4, 4))
    affine[0, 1], affine[1, 0], affine[2, 2], affine[3, 3] = -2, 2, 2, 1
    grid = Preprocessing.of(preprocessing((2.0, 2.0, 2.0))).grid(image.shape[1:], affine)
    found = resampled(reader(image), image.shape[1:], 1, grid.to_image, grid.shape)
    assert torch.equal(found, image.permute(0, 2, 1, 3).flip(1))
    back = resampled(reader(found), grid.shape, 1, grid.from_image, image.shape[1:])
    assert torch.equal(back, image)


def test_outside_the_image_its_border_is_repeated():
    image = torch.arange(4.0).reshape(1, 2, 2)
    mapping = np.eye(3)
    mapping[:2, 2] = [-3, 5]
    assert resample(reader(image), (2, 2), mapping, [slice(0, 2), slice(0, 2)]).unique().tolist() == [1.0]


def test_pictures_have_no_scale():
    grid = Preprocessing.of(preprocessing((1.0, 1.0))).grid((5, 4), None)
    assert grid.shape == (5, 4)
    np.testing.assert_array_equal(grid.to_image, np.eye(3))


def test_the_axis_of_the_grid_along_one_of_the_image():
    affine = np.zeros((4, 4))
    affine[1, 0], affine[2, 1], affine[0, 2], affine[3, 3] = 1, 3, -0.5, 1
    grid = Preprocessing.of(preprocessing((1.0, 1.0, 1.0))).grid((6, 7, 8), affine)
    assert [grid.axis_along(axis) for axis in range(3)] == [1, 2, 0]


def test_spatial_transforms_after_intensities_are_refused():
    steps = preprocessing((1.0, 1.0, 1.0)).transforms
    with pytest.raises(InputError, match="wanted it before"):
        Preprocessing.of(Compose([*steps, Spacingd(keys="image", pixdim=[1, 1, 1])]))
