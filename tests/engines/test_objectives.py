# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Meta objectives: what they show the student, and what supervises it."""

from __future__ import annotations

import pytest
import torch

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.pseudo_labels import HardLabels
from dacal_med.engines import ComplementaryTruth, MixedTarget, WeightedObjectives
from dacal_med.engines.domains import DomainBatch
from dacal_med.io.errors import InputError

CLASSES = 3


def scene(batch: int = 2):
    """A batch of both domains, a mask and hard pseudo-labels."""
    image, target, held = (torch.rand(batch, 1, 6, 4) for _ in range(3))
    labels = torch.randint(0, CLASSES, (batch, 1, 6, 4))
    one_hot = torch.nn.functional.one_hot(labels[:, 0], CLASSES).movedim(-1, 1).float()
    weights = torch.ones(batch, 1, 6, 4)
    domains = DomainBatch(
        LabelledBatch(image, one_hot, weights), labels, target, LabelledBatch(held, one_hot.roll(1, 1), weights)
    )
    hard = HardLabels(threshold=0.2)(4 * torch.randn(batch, CLASSES, 6, 4), target)
    return domains, torch.rand(batch, 1, 6, 4) > 0.5, hard


class Watched:
    """A fixed network that remembers what it was shown."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.images.append(image)
        return torch.cat([image, -image, image.square()], dim=1)


@pytest.mark.parametrize("source", ["held_out", "training"])
@pytest.mark.parametrize("target", ["none", "hard"])
def test_the_complement_of_the_mask_is_shown(source, target):
    batch, mask, hard = scene()
    network = Watched()
    objective = ComplementaryTruth(source, target)
    value = objective.outer_loss(batch, mask, hard)(network)
    assert objective.needs_held_out == (source == "held_out")
    truth = batch.held_out if source == "held_out" else batch.source
    assert torch.equal(network.images[0], torch.where(mask, batch.target_image, truth.image))
    weights = torch.where(mask, hard.weights if target == "hard" else torch.zeros(()), truth.weights)
    targets = torch.where(mask, hard.probabilities, truth.targets)
    expected = soft_cross_entropy(Watched()(network.images[0]), targets, weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("source", ["held_out", "training"])
def test_without_mixing_whole_source_images_are_shown(source):
    batch, mask, hard = scene()
    network = Watched()
    value = ComplementaryTruth(source, mixed=False).outer_loss(batch, mask, hard)(network)
    truth = batch.held_out if source == "held_out" else batch.source
    assert torch.equal(network.images[0], truth.image)
    expected = soft_cross_entropy(Watched()(truth.image), truth.targets, truth.weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(InputError, match="meta_objective#target: found 'hard' without mixing"):
        ComplementaryTruth(source, "hard", mixed=False)


def test_mixed_targets_keep_the_labels_of_the_dominant_image():
    batch, mask, hard = scene(3)
    network = Watched()
    objective = MixedTarget(0.75)
    value = objective.outer_loss(batch, mask, hard)(network)
    assert not objective.needs_held_out
    x = batch.target_image
    for k in range(3):
        assert torch.allclose(network.images[0][k], 0.75 * x[k] + 0.25 * x[k - 1])
    expected = soft_cross_entropy(Watched()(network.images[0]), hard.probabilities, hard.weights)
    assert float(value) == pytest.approx(float(expected), rel=1e-6)


def test_a_weighted_sum_adds_its_parts():
    batch, mask, hard = scene()
    parts = [ComplementaryTruth("training"), MixedTarget()]
    both = WeightedObjectives(parts, [2.0, 0.5])
    values = [float(part.outer_loss(batch, mask, hard)(Watched())) for part in parts]
    total = float(both.outer_loss(batch, mask, hard)(Watched()))
    assert total == pytest.approx(2.0 * values[0] + 0.5 * values[1], rel=1e-6)
    assert not both.needs_held_out
    assert WeightedObjectives([*parts, ComplementaryTruth()], [1, 1, 1]).needs_held_out


def test_what_cannot_work_is_refused():
    with pytest.raises(InputError, match="meta_objective#source: found 'validation'"):
        ComplementaryTruth("validation")
    with pytest.raises(InputError, match="meta_objective#target: found 'soft'"):
        ComplementaryTruth("held_out", "soft")
    for mix in (0.5, 1.0):
        with pytest.raises(InputError, match=f"meta_objective#mix: found {mix}"):
            MixedTarget(mix)
    for objectives, weights in (([], []), ([MixedTarget()], [1.0, 2.0]), ([MixedTarget()], [0.0])):
        with pytest.raises(InputError, match="one positive weight for each"):
            WeightedObjectives(objectives, weights)
    batch, mask, hard = scene(1)
    with pytest.raises(InputError, match="batch_size 1"):
        MixedTarget().outer_loss(batch, mask, hard)
