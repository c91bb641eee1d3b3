# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Masks against what they promise, connected components against scikit-image, mixes against their definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from skimage import measure

from dacal_med.core.batch import LabelledBatch, from_labels
from dacal_med.core.mixing import BoxMask, ClassMask, ComponentMask, NoMask, complementary_mixes, mix, mix_batches

SIZES = {2: (7, 8), 3: (4, 5, 6)}
IGNORED = 255
GENERATORS = {"classes": ClassMask(), "box": BoxMask(), "components": ComponentMask(margin=1.0)}


def generated(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels_of(seed: int, dims: int, classes: int = 5, batch: int = 2, ignored: float = 0.15) -> torch.Tensor:
    """Labels with ignored voxels, in which not every class is present."""
    g = generated(seed)
    some = torch.randint(0, classes, (classes,), generator=g)
    labels = some[torch.randint(0, classes, (batch, 1, *SIZES[dims]), generator=g)]
    return labels.masked_fill(torch.rand(labels.shape, generator=g) < ignored, IGNORED)


def blobs(dims: int, count: int, batch: int = 1) -> torch.Tensor:
    """Separate objects of one class: along the first axis, every other voxel is one."""
    labels = torch.zeros(batch, 1, *(2 * count + 1, 3, 3)[:dims], dtype=torch.long)
    labels[:, :, 1::2] = 1
    return labels


# What all mask generators promise


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_masks_are_bool_of_the_shape_of_the_labels_and_plain(name, dims):
    labels = labels_of(0, dims)
    before = labels.clone()
    mask = GENERATORS[name](labels, generated(1))
    assert mask.dtype == torch.bool
    assert mask.shape == labels.shape
    assert torch.equal(labels, before)
    meta = GENERATORS[name](MetaTensor(labels), generated(1))
    assert type(mask) is type(meta) is torch.Tensor
    assert torch.equal(mask, meta)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_the_generator_alone_decides(name, dims):
    labels = labels_of(3, dims, batch=8)
    state = torch.get_rng_state()
    masks = [GENERATORS[name](labels, generated(seed)) for seed in (1, 1, 2)]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_the_global_generator_is_the_default(name, dims):
    labels = labels_of(3, dims, batch=8)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks.append(GENERATORS[name](labels))
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", GENERATORS)
def test_samples_are_drawn_on_their_own(name, dims):
    labels = blobs(dims, 4, batch=1) * torch.arange(9).view(1, 1, -1, *[1] * (dims - 1))  # classes 0, 1, 3, 5, 7
    masks = GENERATORS[name](labels.expand(30, *labels.shape[1:]), generated(0))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1


# Classes


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(1, 6),
    quarters=st.integers(0, 4),
    ignored=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_class_mask_holds_whole_classes_and_the_asked_share(seed, dims, classes, quarters, ignored):
    labels = labels_of(seed, dims, classes, ignored=ignored)
    mask = ClassMask(share=quarters / 4)(labels, generated(seed))
    for sample, inside in zip(labels, mask, strict=True):
        present = set(sample.unique().tolist()) - {IGNORED}
        chosen = set(sample[inside].tolist())
        assert chosen.isdisjoint(sample[~inside].tolist())
        assert IGNORED not in chosen
        assert len(chosen) == -(-len(present) * quarters // 4)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("present", "chosen"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (7, 4)])
def test_half_of_the_classes_is_rounded_up(dims, present, chosen):
    labels = torch.arange(2 * present).remainder(present).view(1, 1, -1, *[1] * (dims - 1)) + 2
    mask = ClassMask()(labels, generated(0))
    assert len(labels[mask].unique()) == chosen
    assert int(mask.sum()) == 2 * chosen


def test_every_class_is_chosen_equally_often():
    labels = torch.arange(4).view(1, 1, 2, 2).expand(1000, 1, 2, 2)
    share = ClassMask()(labels, generated(0)).double().mean(dim=0)
    # Standard deviation 0.016.
    assert torch.allclose(share, torch.tensor(0.5, dtype=torch.float64), atol=0.06)


@pytest.mark.parametrize("dims", [2, 3])
def test_class_mask_and_ignored_labels(dims):
    labels = torch.full((1, 1, *SIZES[dims]), IGNORED)
    assert not ClassMask(share=1.0)(labels).any()
    assert ClassMask(share=1.0, ignore_index=None)(labels).all()
    assert ClassMask(share=1.0, ignore_index=-1)(labels).all()
    labels[..., 0] = 0
    # Only class 0 is there to be chosen, and half of one, rounded up, is one.
    assert torch.equal(ClassMask()(labels), labels == 0)
    assert torch.equal(ClassMask(ignore_index=0)(labels), labels == IGNORED)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("kind", [ClassMask, ComponentMask])
def test_shares_out_of_range_are_refused(kind, share):
    with pytest.raises(ValueError, match=r"share: found .*, wanted a number in \[0, 1\]"):
        kind(share=share)


# Boxes


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    size=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    low=st.floats(0.01, 1.0),
    high=st.floats(0.01, 1.0),
)
def test_box_mask_is_one_box_whose_share_is_within_bounds(seed, size, low, high):
    low, high = sorted((low, high))
    masks = BoxMask(low, high)(torch.zeros(3, 1, *size), generated(seed))
    for mask in masks[:, 0]:
        where = mask.nonzero()
        lengths = (where.amax(0) - where.amin(0) + 1).tolist()
        assert math.prod(lengths) == len(where) > 0
        # Lengths are rounded to voxels and are at least one.
        largest = math.prod(min(length + 0.5, n) / n for length, n in zip(lengths, size, strict=True))
        smallest = math.prod((length - 0.5) / n if length > 1 else 0.0 for length, n in zip(lengths, size, strict=True))
        assert smallest <= high + 1e-9
        assert largest >= low - 1e-9


@pytest.mark.parametrize(("size", "tolerance"), [((256, 384), 0.01), ((64, 96, 80), 0.05)])
def test_shares_of_boxes_fill_the_range(size, tolerance):
    low, high = 0.25, 0.5
    shares = BoxMask(low, high)(torch.zeros(40, 1, *size), generated(0)).flatten(1).double().mean(dim=1)
    assert low * (1 - tolerance) <= float(shares.min()) < low + 0.05
    assert high - 0.05 < float(shares.max()) <= high * (1 + tolerance)


@pytest.mark.parametrize("size", [(64, 64), (32, 32, 32)])
def test_boxes_vary_in_place_and_elongation(size):
    masks = BoxMask(0.2, 0.2)(torch.zeros(100, 1, *size), generated(0))[:, 0]
    for axis in range(len(size)):
        others = [a + 1 for a in range(len(size)) if a != axis]
        touched = masks.amax(dim=others)  # (100, n)
        lengths = touched.sum(1)
        assert int(lengths.min()) < 0.35 * size[axis]
        assert int(lengths.max()) > 0.9 * size[axis]
        assert touched[:, 0].any()
        assert touched[:, -1].any()
        assert not touched[:, 0].all()
        assert not touched[:, -1].all()


def test_a_box_of_everything_and_labels_without_a_say():
    labels = labels_of(0, 3)
    assert BoxMask(1.0, 1.0)(labels).all()
    assert torch.equal(BoxMask()(labels, generated(3)), BoxMask()(torch.zeros_like(labels), generated(3)))


@pytest.mark.parametrize("shares", [(0.0, 0.5), (0.6, 0.5), (0.5, 1.1), (-0.1, 0.5), (math.nan, 0.5), (0.5, math.nan)])
def test_box_shares_out_of_range_are_refused(shares):
    with pytest.raises(ValueError, match="wanted 0 < min_share <= max_share <= 1"):
        BoxMask(*shares)


# Connected components


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    quarters=st.integers(0, 4),
    background=st.sampled_from([0, 2, None]),
    smallest=st.integers(0, 4),
)
def test_component_mask_holds_whole_components_and_the_asked_share(seed, dims, quarters, background, smallest):
    labels = labels_of(seed, dims, classes=4)
    labels[torch.rand(labels.shape, generator=generated(seed)) < 0.5] = 0
    mask = ComponentMask(share=quarters / 4, background=background, min_volume=smallest)(labels, generated(seed))
    for sample, inside in zip(labels[:, 0].numpy(), mask[:, 0].numpy(), strict=True):
        excluded = {background, IGNORED}
        objects = []
        for value in set(np.unique(sample).tolist()) - excluded:
            numbered = measure.label(sample == value, connectivity=dims)
            objects += [numbered == k for k in range(1, numbered.max() + 1)]
        objects = [o for o in objects if o.sum() >= smallest]
        chosen = [o for o in objects if inside[o].any()]
        assert all(inside[o].all() for o in chosen)
        assert len(chosen) == -(-len(objects) * quarters // 4)
        assert inside.sum() == sum(o.sum() for o in chosen)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("count", "chosen"), [(1, 1), (2, 1), (3, 2), (5, 3)])
def test_half_of_the_components_is_rounded_up(dims, count, chosen):
    labels = blobs(dims, count)
    mask = ComponentMask()(labels, generated(0))
    assert int(mask.sum()) == chosen * 3 ** (dims - 1)
    assert not mask[labels == 0].any()


@pytest.mark.parametrize("dims", [2, 3])
def test_touching_voxels(dims):
    """Corners connect voxels of one class; voxels of two classes are two objects however they touch."""
    labels = torch.zeros(1, 1, *[4] * dims, dtype=torch.long)
    labels[(0, 0, *[1] * dims)] = labels[(0, 0, *[2] * dims)] = 1
    for seed in range(10):
        assert int(ComponentMask()(labels, generated(seed)).sum()) == 2
    labels[(0, 0, *[2] * dims)] = 2
    found = {int(labels[ComponentMask()(labels, generated(seed))].sum()) for seed in range(10)}
    assert found == {1, 2}


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 2.0), (0.7, 3.0), (1.0, 1.0, 1.0), (3.0, 0.8, 1.5)])
@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0, 1.5, 2.0, 3.2])
def test_margin_is_measured_in_mm(spacing, margin):
    dims = len(spacing)
    size = (9, 8, 7)[:dims]
    labels = torch.zeros(1, 1, *size, dtype=torch.long)
    parts = [(2, 3, 3)[:dims], (3, 3, 3)[:dims]]
    for part in parts:
        labels[(0, 0, *part)] = 1
    mask = ComponentMask(spacing=spacing, margin=margin)(labels)
    for index in itertools.product(*map(range, size)):
        distance = min(math.hypot(*(np.subtract(index, part) * spacing)) for part in parts)
        assert bool(mask[(0, 0, *index)]) == (distance <= margin), index


@pytest.mark.parametrize("dims", [2, 3])
def test_spacing_defaults_to_one(dims):
    labels = labels_of(4, dims)
    options = {"margin": 1.2, "min_volume": 2.0}
    found = ComponentMask(**options)(labels, generated(0))
    assert torch.equal(found, ComponentMask(spacing=[1.0] * dims, **options)(labels, generated(0)))
    assert found.any()


@pytest.mark.parametrize("dims", [2, 3])
def test_only_chosen_components_grow(dims):
    labels = torch.zeros(1, 1, *(11, 3, 3)[:dims], dtype=torch.long)
    labels[:, :, 1] = 1
    labels[:, :, 9] = 2
    rows = set()
    for seed in range(10):
        mask = ComponentMask(margin=1.0)(labels, generated(seed))
        row = mask[0, 0].flatten(1).any(1)
        assert torch.equal(row, mask[0, 0].flatten(1).all(1))
        rows.add(tuple(row.nonzero().flatten().tolist()))
    assert rows == {(0, 1, 2), (8, 9, 10)}


@pytest.mark.parametrize(("spacing", "volume"), [((1.0, 2.0), 6.0), ((2.0, 0.25), 1.5), ((1.0, 2.0, 1.5), 9.0)])
def test_min_volume_is_measured_in_mm(spacing, volume):
    """Of one large object of three voxels and three small ones, small ones neither move nor count."""
    labels = torch.zeros(1, 1, *(9, 3, 3)[: len(spacing)], dtype=torch.long)
    first = labels[0, 0] if len(spacing) == 2 else labels[0, 0, :, :, 0]
    first[1] = 1  # three voxels
    first[3::2, 0] = 1  # three times one
    for seed in range(10):
        kept = ComponentMask(spacing=spacing, min_volume=volume)(labels, generated(seed))
        assert int(kept[0, 0, 1].sum()) == int(kept.sum()) == 3
    assert not ComponentMask(spacing=spacing, min_volume=volume * 1.001, share=1.0)(labels).any()
    assert torch.equal(ComponentMask(spacing=spacing, min_volume=volume / 3, share=1.0)(labels), labels == 1)


@pytest.mark.parametrize("dims", [2, 3])
def test_background_is_not_an_object_unless_asked(dims):
    labels = blobs(dims, 2)
    everything = ComponentMask(share=1.0)
    assert torch.equal(everything(labels), labels == 1)
    assert torch.equal(ComponentMask(share=1.0, background=1)(labels), labels == 0)
    assert ComponentMask(share=1.0, background=None)(labels).all()
    assert not everything(torch.zeros_like(labels)).any()
    assert not ComponentMask(share=1.0, margin=3.0)(torch.zeros_like(labels)).any()


@pytest.mark.parametrize("dims", [2, 3])
def test_ignored_voxels_stay_outside_components_and_margins(dims):
    labels = blobs(dims, 1)
    labels[:, :, 0] = IGNORED
    mask = ComponentMask(margin=1.0)(labels)
    assert torch.equal(mask, labels != IGNORED)
    assert ComponentMask(share=1.0, margin=1.0, ignore_index=None)(labels).all()
    assert not ComponentMask(share=1.0)(torch.full_like(labels, IGNORED)).any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), margin=st.floats(0, 3))
def test_ignored_voxels_are_never_inside(seed, dims, margin):
    labels = labels_of(seed, dims)
    assert not ComponentMask(share=1.0, margin=margin)(labels, generated(seed))[labels == IGNORED].any()
    assert not ClassMask(share=1.0)(labels, generated(seed))[labels == IGNORED].any()


@pytest.mark.parametrize(
    "options", [{"margin": -0.1}, {"min_volume": -1.0}, {"spacing": (1.0, 0.0)}, {"spacing": (1.0, -2.0, 1.0)}]
)
def test_component_numbers_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="wanted margin >= 0, min_volume >= 0 and positive spacing"):
        ComponentMask(**options)


@pytest.mark.parametrize("dims", [2, 3])
def test_spacing_for_another_number_of_axes_is_refused(dims):
    with pytest.raises(ValueError, match=f"spacing: found {5 - dims} numbers, wanted {dims}"):
        ComponentMask(spacing=[1.0] * (5 - dims))(labels_of(0, dims))


# Mixes


def batch_of(seed: int, dims: int, channels: int = 2, classes: int = 3) -> LabelledBatch:
    g = generated(seed)
    return LabelledBatch(
        torch.randn(2, channels, *SIZES[dims], generator=g),
        torch.randn(2, classes, *SIZES[dims], generator=g).softmax(1),
        torch.rand(2, 1, *SIZES[dims], generator=g),
    )


def mask_of(seed: int, dims: int) -> torch.Tensor:
    return torch.rand(2, 1, *SIZES[dims], generator=generated(seed)) < 0.4


def fields(batch: LabelledBatch) -> list[torch.Tensor]:
    return [batch.image, batch.targets, batch.weights]


def test_mix_of_a_hand_made_example():
    mask = torch.tensor([[[[True, False], [False, True]]]])
    inside = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]])
    assert mix(mask, inside, -inside).tolist() == [[[[1, -2], [-3, 4]], [[5, -6], [-7, 8]]]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), channels=st.integers(1, 3))
def test_mix_is_its_definition_and_symmetric(seed, dims, channels):
    mask, inside, outside = mask_of(seed, dims), batch_of(seed, dims, channels), batch_of(seed + 1, dims, channels)
    m = mask.float()
    found = mix(mask, inside.image, outside.image)
    assert torch.equal(found, m * inside.image + (1 - m) * outside.image)
    assert torch.equal(found, mix(~mask, outside.image, inside.image))
    for mixed, a, b in zip(fields(mix_batches(mask, inside, outside)), fields(inside), fields(outside), strict=True):
        assert torch.equal(mixed, m * a + (1 - m) * b)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), name=st.sampled_from(sorted(GENERATORS)))
def test_complementary_mixes_reconstruct_both_domains(seed, dims, name):
    source, target = batch_of(seed, dims), batch_of(seed + 1, dims)
    mask = GENERATORS[name](labels_of(seed, dims), generated(seed))
    first, second = complementary_mixes(mask, source, target)
    # The first mix holds the source inside the mask, the second outside.
    for a, b, s, t in zip(fields(first), fields(second), fields(source), fields(target), strict=True):
        assert torch.equal(torch.where(mask, a, b), s)
        assert torch.equal(torch.where(mask, b, a), t)
        assert torch.equal(a + b, s + t)


@pytest.mark.parametrize("dims", [2, 3])
def test_images_targets_and_weights_mix_alike(dims):
    """Every voxel carries its own number in all fields, negative in the target domain."""
    number = 1.0 + torch.arange(2.0 * math.prod(SIZES[dims])).view(2, 1, *SIZES[dims])
    source = LabelledBatch(number.expand(-1, 2, *SIZES[dims]), number.expand(-1, 3, *SIZES[dims]), number)
    target = LabelledBatch(-source.image, -source.targets, -source.weights)
    mask = mask_of(0, dims)
    first, second = complementary_mixes(mask, source, target)
    for mixed, sign in ((first, 1.0), (second, -1.0)):
        wanted = torch.where(mask, sign * number, -sign * number)
        for field in fields(mixed):
            assert torch.equal(field, wanted.expand_as(field))


@pytest.mark.parametrize("dims", [2, 3])
def test_ignored_voxels_keep_weight_zero(dims):
    labels = labels_of(7, dims, 3)
    source = from_labels(torch.randn(2, 1, *SIZES[dims]), labels, 3)
    target = LabelledBatch(
        source.image + 1, torch.full_like(source.targets, 1 / 3), torch.full_like(source.weights, 0.7)
    )
    mask = mask_of(1, dims)
    first, second = complementary_mixes(mask, source, target)
    ignored = labels == IGNORED
    for mixed, from_source in ((first, mask), (second, ~mask)):
        assert torch.equal(mixed.weights == 0, ignored & from_source)
        assert torch.equal(mixed.weights == 0.7, ~from_source)
        assert (mixed.targets.sum(1, keepdim=True)[ignored & from_source] == 0).all()


@pytest.mark.parametrize("dims", [2, 3])
def test_gradients_reach_soft_targets_where_they_are_seen(dims):
    source, target = batch_of(0, dims), batch_of(1, dims)
    soft = target.targets.clone().requires_grad_(True)
    mask = mask_of(2, dims)
    first, second = complementary_mixes(mask, source, LabelledBatch(target.image, soft, target.weights))
    for mixed, seen in ((first, ~mask), (second, mask)):
        (gradient,) = torch.autograd.grad(mixed.targets.sum(), soft)
        assert torch.equal(gradient, seen.expand_as(soft).float())


@pytest.mark.parametrize("dims", [2, 3])
def test_mixes_of_metatensors_are_plain(dims):
    source, target, mask = batch_of(0, dims), batch_of(1, dims), mask_of(0, dims)
    wanted = mix(mask, source.image, target.image)
    found = mix(MetaTensor(mask), MetaTensor(source.image), MetaTensor(target.image))
    assert type(found) is torch.Tensor
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.int64])
def test_masks_that_are_not_bool_are_refused(dtype):
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="mask: found dtype"):
        mix(torch.ones(1, 1, 2, 2, dtype=dtype), image, image)


@pytest.mark.parametrize("dims", [2, 3])
def test_shapes_that_do_not_fit_are_refused(dims):
    size = SIZES[dims]
    image = torch.zeros(2, 3, *size)
    wrong = [(2, *size), (2, 3, *size), (1, 1, *size), (2, 1, *size[:-1]), (2, 1, *size[:-1], 1)]
    for shape in wrong:
        with pytest.raises(ValueError, match="wanted two tensors of one shape"):
            mix(torch.ones(shape, dtype=torch.bool), image, image)
    mask = torch.ones(2, 1, *size, dtype=torch.bool)
    for other in (torch.zeros(2, 1, *size), torch.zeros(1, 3, *size), torch.zeros(2, 3, *size[:-1], 1)):
        with pytest.raises(ValueError, match="wanted two tensors of one shape"):
            mix(mask, image, other)
    assert mix(mask, image, image).shape == image.shape


@pytest.mark.parametrize("size", [(3, 4), (3, 4, 5)])
def test_no_mask_leaves_both_images_whole(size):
    labels = torch.randint(0, 3, (2, 1, *size))
    mask = NoMask()(MetaTensor(labels))
    assert type(mask) is torch.Tensor
    assert mask.shape == labels.shape
    assert not mask.any()
