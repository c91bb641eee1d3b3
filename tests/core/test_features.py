# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Feature distance against DAFormer's definition, on cells small enough to count."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dacal_med.core.batch import from_labels
from dacal_med.core.features import class_cells, feature_distance


def test_a_cell_needs_three_quarters_of_one_class():
    # Four cells of 2 x 2: all thing 1; three of four; half; two things that only together reach three quarters.
    labels = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 2], [0, 0, 2, 0]]).view(1, 1, 4, 4)
    targets = from_labels(torch.zeros(1, 1, 4, 4), labels, 3).targets
    assert class_cells(targets, [1, 2], (2, 2))[0, 0].tolist() == [[True, True], [False, False]]
    assert class_cells(targets, [2], (2, 2)).sum() == 0
    assert class_cells(targets, [1, 2], (2, 2), min_share=0.8)[0, 0].tolist() == [[True, False], [False, False]]


def test_ignored_voxels_count_against_a_class():
    labels = torch.tensor([[1, 255], [255, 1]]).view(1, 1, 2, 2)
    targets = from_labels(torch.zeros(1, 1, 2, 2), labels, 2).targets
    assert not class_cells(targets, [1], (1, 1)).any()


def test_distance_by_hand():
    features = torch.tensor([[[[3.0, 9.0]], [[4.0, 9.0]]]], requires_grad=True)
    mask = torch.tensor([[[[True, False]]]])
    distance = feature_distance(features, torch.zeros(1, 2, 1, 2), mask)
    assert float(distance.detach()) == pytest.approx(5.0)
    distance.backward()
    torch.testing.assert_close(features.grad, torch.tensor([[[[0.6, 0.0]], [[0.8, 0.0]]]]))


def test_nothing_to_compare_and_nothing_different_give_zero_and_finite_gradients():
    features = torch.ones(1, 2, 2, 2, requires_grad=True)
    for mask in (torch.zeros(1, 1, 2, 2, dtype=torch.bool), torch.ones(1, 1, 2, 2, dtype=torch.bool)):
        distance = feature_distance(features, torch.ones(1, 2, 2, 2), mask)
        assert float(distance.detach()) == 0.0
        (gradient,) = torch.autograd.grad(distance, features)
        assert torch.isfinite(gradient).all()


@settings(deadline=None, max_examples=20)
@given(dims=st.integers(2, 3), factor=st.integers(2, 4), seed=st.integers(0, 99))
def test_cells_are_counted_voxel_by_voxel(dims, factor, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 3, (1, 1, *[2] * dims), generator=generator)
    labels = coarse
    for axis in range(2, dims + 2):
        labels = labels.repeat_interleave(factor, axis)
    labels = torch.where(torch.rand(labels.shape, generator=generator) < 0.25, 0, labels)
    found = class_cells(from_labels(labels.float(), labels, 3).targets, [1, 2], [2] * dims)
    for cell in torch.cartesian_prod(*[torch.arange(2)] * dims).tolist():
        part = labels[(0, 0, *(slice(c * factor, (c + 1) * factor) for c in cell))]
        counts = part.flatten().bincount(minlength=3)
        assert bool(found[(0, 0, *cell)]) == bool((4 * counts[1:] >= 3 * part.numel()).any())
