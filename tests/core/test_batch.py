# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One-hot targets from labels, and the weighted soft cross-entropy against closed forms and PyTorch's own."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch.nn import functional

from dacal_med.core.batch import from_labels, soft_cross_entropy

SIZES = {2: (5, 6), 3: (3, 4, 5)}
IGNORED = 255


def generated(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(seed: int, dims: int, classes: int, ignored: bool = True, batch: int = 2) -> torch.Tensor:
    labels = torch.randint(0, classes + ignored, (batch, 1, *SIZES[dims]), generator=generated(seed))
    return labels.masked_fill(labels == classes, IGNORED)


def soft_problem(seed: int, dims: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, soft targets and weights, some of them 0."""
    g = generated(seed)
    logits = 3 * torch.randn(2, classes, *SIZES[dims], generator=g, dtype=torch.float64)
    targets = torch.randn(2, classes, *SIZES[dims], generator=g, dtype=torch.float64).softmax(1)
    weights = (torch.rand(2, 1, *SIZES[dims], generator=g, dtype=torch.float64) - 0.3).clamp_min(0)
    return logits, targets, weights


def test_a_hand_made_example():
    batch = from_labels(torch.zeros(1, 1, 2, 2), torch.tensor([[[[0, 2], [IGNORED, 1]]]]), 3)
    assert batch.targets.tolist() == [[[[1, 0], [0, 0]], [[0, 0], [0, 1]], [[0, 1], [0, 0]]]]
    assert batch.weights.tolist() == [[[[1, 1], [0, 1]]]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(1, 5))
def test_targets_are_rows_of_the_identity_and_zero_where_ignored(seed, dims, classes):
    labels = labels_of(seed, dims, classes)
    image = torch.randn(2, 2, *SIZES[dims], generator=generated(seed))
    batch = from_labels(image, labels, classes)
    rows = np.vstack([np.eye(classes), np.zeros(classes)])  # the last row for ignored voxels
    array = labels[:, 0].numpy()
    wanted = np.moveaxis(rows[np.where(array == IGNORED, classes, array)], -1, 1)
    assert batch.image is image
    assert np.array_equal(batch.targets.numpy(), wanted)
    assert np.array_equal(batch.weights.numpy(), (labels != IGNORED).numpy())


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_targets_and_weights_have_the_dtype_of_the_image(dims, dtype):
    batch = from_labels(torch.zeros(2, 1, *SIZES[dims], dtype=dtype), labels_of(0, dims, 3), 3)
    assert batch.image.dtype == batch.targets.dtype == batch.weights.dtype == dtype


@pytest.mark.parametrize("dims", [2, 3])
def test_integer_images_get_float_targets(dims):
    batch = from_labels(torch.zeros(2, 1, *SIZES[dims], dtype=torch.int16), labels_of(0, dims, 3), 3)
    assert batch.targets.dtype == batch.weights.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float32])
def test_labels_of_any_dtype(dtype):
    labels = labels_of(1, 2, 4)
    image = torch.zeros(2, 1, *SIZES[2])
    found, wanted = from_labels(image, labels.to(dtype), 4), from_labels(image, labels, 4)
    assert torch.equal(found.targets, wanted.targets)
    assert torch.equal(found.weights, wanted.weights)


@pytest.mark.parametrize("ignore_index", [-1, 1, 7])
def test_any_label_may_be_ignored(ignore_index):
    labels = torch.tensor([[[[0, ignore_index, 2]]]])
    batch = from_labels(torch.zeros(1, 1, 1, 3), labels, 3, ignore_index)
    assert batch.weights.tolist() == [[[[1, 0, 1]]]]
    assert batch.targets.sum(1).tolist() == [[[1, 0, 1]]]


def test_without_ignore_index_every_voxel_counts():
    image = torch.zeros(1, 1, 1, 2)
    assert from_labels(image, torch.tensor([[[[0, 1]]]]), 2, None).weights.tolist() == [[[[1, 1]]]]
    with pytest.raises(ValueError, match=r"labels: found values from 0 to 255, wanted 0 to 1$"):
        from_labels(image, torch.tensor([[[[0, IGNORED]]]]), 2, None)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("value", "found"), [(3, "from 0 to 3"), (254, "from 0 to 254"), (-1, "from -1 to 0")])
def test_labels_out_of_range_are_refused(dims, value, found):
    labels = torch.zeros(2, 1, *SIZES[dims], dtype=torch.long)
    labels[1].view(-1)[-1] = value
    with pytest.raises(ValueError, match=f"{found}, wanted 0 to 2 or 255"):
        from_labels(torch.zeros(2, 1, *SIZES[dims]), labels, 3)


@pytest.mark.parametrize("dims", [2, 3])
def test_wrong_shapes_are_refused(dims):
    size = SIZES[dims]
    image = torch.zeros(2, 3, *size)
    shapes = [(2, *size), (2, 3, *size), (1, 1, *size), (2, 1, *size[:-1]), (2, 1, *size[:-1], size[-1] + 1)]
    for shape in shapes:
        with pytest.raises(ValueError, match="labels: found shape"):
            from_labels(image, torch.zeros(shape, dtype=torch.long), 3)
    assert from_labels(image, torch.zeros(2, 1, *size, dtype=torch.long), 3).targets.shape == (2, 3, *size)


@pytest.mark.parametrize("dims", [2, 3])
def test_metatensors_become_plain(dims):
    image, labels = torch.randn(2, 1, *SIZES[dims]), labels_of(2, dims, 3)
    found, wanted = from_labels(MetaTensor(image), MetaTensor(labels), 3), from_labels(image, labels, 3)
    for field in ("image", "targets", "weights"):
        assert type(getattr(found, field)) is torch.Tensor
        assert torch.equal(getattr(found, field), getattr(wanted, field))


def test_a_batch_cannot_be_changed():
    batch = from_labels(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.weights = torch.ones(1, 1, 1, 1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 5))
def test_equals_cross_entropy_of_hard_labels(seed, dims, classes):
    labels = labels_of(seed, dims, classes)
    logits = 3 * torch.randn(2, classes, *SIZES[dims], generator=generated(seed), dtype=torch.float64)
    batch = from_labels(torch.zeros(2, 1, *SIZES[dims], dtype=torch.float64), labels, classes)
    found = soft_cross_entropy(logits, batch.targets, batch.weights)
    # PyTorch's mean divides by the voxels that are not ignored, this loss by all of them.
    total = functional.cross_entropy(logits, labels[:, 0], ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(found, total / labels.numel(), rtol=1e-12, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 5))
def test_equals_cross_entropy_of_all_hard_labels_with_mean_reduction(seed, dims, classes):
    labels = labels_of(seed, dims, classes, ignored=False)
    logits = 3 * torch.randn(2, classes, *SIZES[dims], generator=generated(seed), dtype=torch.float64)
    batch = from_labels(torch.zeros(2, 1, *SIZES[dims], dtype=torch.float64), labels, classes)
    found = soft_cross_entropy(logits, batch.targets, batch.weights)
    wanted = functional.cross_entropy(logits, labels[:, 0], reduction="mean")
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 5))
def test_equals_weighted_cross_entropy_of_soft_labels(seed, dims, classes):
    logits, targets, weights = soft_problem(seed, dims, classes)
    voxels = functional.cross_entropy(logits, targets, reduction="none")
    found = soft_cross_entropy(logits, targets, weights)
    assert found.shape == ()
    torch.testing.assert_close(found, (weights[:, 0] * voxels).mean(), rtol=1e-12, atol=1e-14)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(2, 5),
    a=st.floats(-3, 3),
    b=st.floats(-3, 3),
)
def test_is_linear_in_targets_and_in_weights(seed, dims, classes, a, b):
    logits, first, first_weights = soft_problem(seed, dims, classes)
    _, second, second_weights = soft_problem(seed + 1, dims, classes)

    def loss(targets, weights):
        return soft_cross_entropy(logits, targets, weights)

    found = loss(a * first + b * second, first_weights)
    wanted = a * loss(first, first_weights) + b * loss(second, first_weights)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    found = loss(first, a * first_weights + b * second_weights)
    wanted = a * loss(first, first_weights) + b * loss(first, second_weights)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_closed_form(dims):
    # p = (1/2, 1/4, 1/4), y = (1/2, 1/2, 0): the cross-entropy of a voxel is 1.5 log 2.
    shape = [1, 3] + [1] * dims
    logits = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log().view(shape) + 7.0
    targets = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64).view(shape)
    one = torch.ones(1, 1, *shape[2:], dtype=torch.float64)
    assert float(soft_cross_entropy(logits, targets, one)) == pytest.approx(1.5 * math.log(2), rel=1e-14)
    assert float(soft_cross_entropy(logits, targets, 0.3 * one)) == pytest.approx(0.45 * math.log(2), rel=1e-14)
    pair = [torch.cat([x, x]) for x in (logits, targets)]
    # One of two voxels: half the loss, since the mean is over all voxels.
    found = soft_cross_entropy(*pair, torch.cat([one, 0 * one]))
    assert float(found) == pytest.approx(0.75 * math.log(2), rel=1e-14)


@pytest.mark.parametrize("dims", [2, 3])
def test_gradient_is_weight_times_probability_minus_target(dims):
    logits, targets, weights = soft_problem(4, dims, 3)
    logits.requires_grad_(True)
    soft_cross_entropy(logits, targets, weights).backward()
    wanted = weights * (logits.detach().softmax(1) - targets) / weights.numel()
    torch.testing.assert_close(logits.grad, wanted, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dims", [2, 3])
def test_ignored_voxels_have_no_say(dims):
    labels = labels_of(5, dims, 3)
    batch = from_labels(torch.zeros(2, 1, *SIZES[dims]), labels, 3)
    logits = torch.randn(2, 3, *SIZES[dims], requires_grad=True)
    other = torch.where(labels == IGNORED, 9 * torch.randn(2, 3, *SIZES[dims]), logits.detach())
    loss = soft_cross_entropy(logits, batch.targets, batch.weights)
    assert not torch.equal(other, logits)
    assert torch.equal(soft_cross_entropy(other, batch.targets, batch.weights), loss.detach())
    loss.backward()
    unsupervised = (logits.grad == 0).all(dim=1, keepdim=True)
    assert torch.equal(unsupervised, labels == IGNORED)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_batch_without_supervision_has_loss_zero(dims):
    batch = from_labels(torch.zeros(2, 1, *SIZES[dims]), torch.full((2, 1, *SIZES[dims]), IGNORED), 3)
    logits = torch.randn(2, 3, *SIZES[dims], requires_grad=True)
    loss = soft_cross_entropy(logits, batch.targets, batch.weights)
    loss.backward()
    assert loss.item() == 0.0
    assert not logits.grad.any()
