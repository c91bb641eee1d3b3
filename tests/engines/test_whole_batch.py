# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums over a batch in parts: values and mean gradients are those of the whole. Ranks are in test_parallel.py."""

from __future__ import annotations

import pytest
import torch

from dacal_med.core.features import feature_distance
from dacal_med.engines.domains import sample_seeds
from dacal_med.engines.hosts.daformer import FeatureDistance
from dacal_med.engines.losses import dice_cross_entropy, soft_dice_loss
from dacal_med.engines.whole_batch import MicroBatches, needs_sums, over_batch


def losses(weight, parts):
    """A Dice loss and a masked distance of a batch whose parts differ much."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(4, 3, 6, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 6, 6), generator=generator)
    labels[:2] = labels[:2].clamp(max=1)  # a class that one part lacks
    targets = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).double()
    mask = torch.rand(4, 1, 6, 6, generator=generator) < torch.tensor([0.1, 0.2, 0.8, 0.9]).view(4, 1, 1, 1)
    size = 4 // parts

    def loss_of(i):
        own = slice(i * size, (i + 1) * size)
        logits = image[own] * weight
        dice = soft_dice_loss(logits, targets[own], mask[own].double())
        return dice + feature_distance(logits, targets[own], mask[own], over_batch)

    return [lambda i=i: loss_of(i) for i in range(parts)]


@pytest.mark.parametrize("parts", [2, 4])
def test_the_mean_over_parts_is_the_whole(parts):
    weight = torch.tensor([1.0, 0.5, -0.3], dtype=torch.float64).view(1, 3, 1, 1).requires_grad_(True)
    (whole,) = losses(weight, 1)
    (expected,) = torch.autograd.grad(whole(), weight)
    micro, found = MicroBatches(parts), torch.zeros_like(weight)
    pieces = losses(weight, parts)
    for loss in pieces:
        with micro.recording(), torch.no_grad():
            loss()
    for loss in pieces:
        with micro.replaying():
            value = loss()
        assert float(value) == pytest.approx(float(whole()), rel=1e-12)
        found += torch.autograd.grad(value / parts, weight)[0]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    apart = sum(torch.autograd.grad(loss() / parts, weight)[0] for loss in pieces)
    assert not torch.allclose(apart, expected, rtol=1e-3)


def test_a_batch_in_one_part_is_left_alone():
    own = torch.ones(2, requires_grad=True)
    assert over_batch(own) is own


def test_what_needs_sums_says_so():
    assert needs_sums(soft_dice_loss) and needs_sums(dice_cross_entropy) and needs_sums(FeatureDistance)
    assert not needs_sums(torch.nn.functional.cross_entropy)
    assert not needs_sums(None)


def test_seeds_belong_to_samples():
    whole = sample_seeds(3, 7, range(4))
    assert whole == sample_seeds(3, 7, range(2)) + sample_seeds(3, 7, range(2, 4))
    others = {seed for args in ((3, 8), (4, 7), (7, 3)) for seed in sample_seeds(*args, range(4))}
    assert len({*whole, *others}) == 16
    assert all(0 <= seed < 2**63 for seed in whole)
