# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The small pieces of the engine: teacher, losses, batches of two domains, labellers by name."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.losses import DiceLoss
from torch import nn

from dacal_med.core.pseudo_labels import FixedTemperature, HardLabels, LearnedTemperature, SoftLabels
from dacal_med.engines import dice_cross_entropy, make_labeller, make_temperature_learner
from dacal_med.engines.domains import prepare_domains
from dacal_med.engines.labellers import LABELLERS
from dacal_med.engines.losses import soft_dice_loss
from dacal_med.engines.teacher import Teacher
from dacal_med.io.errors import InputError


def test_the_teacher_is_the_closed_form_average():
    student = nn.Linear(2, 1, bias=False)
    teacher = Teacher(student, 0.9)
    expected = None
    for n, value in enumerate([1.0, 2.0, 5.0, -3.0] * 5, start=1):
        with torch.no_grad():
            student.weight.fill_(value)
        teacher.update(student)
        decay = min(0.9, 1 - 1 / n)
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert float(teacher.network.weight.detach().mean()) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_owns_its_buffers():
    student = nn.BatchNorm2d(2)
    teacher = Teacher(student)
    student(torch.randn(4, 2, 3, 3) + 5.0)
    assert not torch.equal(teacher.network.running_mean, student.running_mean)
    teacher.update(student)
    assert torch.equal(teacher.network.running_mean, student.running_mean)
    student(torch.randn(4, 2, 3, 3))
    assert not torch.equal(teacher.network.running_mean, student.running_mean)
    assert not teacher.network.training


def test_the_teacher_continues_from_a_checkpoint():
    first, student = Teacher(nn.Linear(2, 1)), nn.Linear(2, 1)
    first.update(student)
    second = Teacher(nn.Linear(2, 1))
    second.load_state_dict(first.state_dict())
    other = nn.Linear(2, 1)
    for teacher in (first, second):
        teacher.update(other)
    assert torch.equal(first.network.weight, second.network.weight)
    with pytest.raises(ValueError, match=r"decay: found 1\.0"):
        Teacher(student, 1.0)


@settings(deadline=None, max_examples=20)
@given(dims=st.sampled_from([2, 3]), classes=st.integers(2, 5), seed=st.integers(0, 99))
def test_soft_dice_is_monais_where_every_class_is_present(dims, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *[6] * dims, generator=generator)
    labels = torch.randint(0, classes, (2, 1, *[6] * dims), generator=generator)
    targets = nn.functional.one_hot(labels[:, 0], classes).movedim(-1, 1).float()
    found = soft_dice_loss(logits, targets, torch.ones_like(labels, dtype=torch.float32))
    monai = DiceLoss(include_background=False, softmax=True, batch=True, smooth_nr=0.0, smooth_dr=1e-6)
    expected = monai(logits, targets)
    present = targets.flatten(2).sum((0, 2))[1:] > 0
    if bool(present.all()):
        assert float(found) == pytest.approx(float(expected), abs=1e-5)


def test_soft_dice_leaves_out_what_has_no_weight_and_what_is_absent():
    logits = torch.randn(1, 3, 4, 4)
    labels = torch.tensor([0, 1]).repeat(8).view(1, 1, 4, 4)
    targets = nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    weights = torch.ones(1, 1, 4, 4)
    weights[..., 2:] = 0
    found = soft_dice_loss(logits, targets, weights)
    expected = soft_dice_loss(logits[..., :2], targets[..., :2], weights[..., :2])
    torch.testing.assert_close(found, expected)
    p = logits[..., :2].softmax(1)[:, 1]
    truth = targets[..., :2][:, 1]
    by_hand = 1 - 2 * (p * truth).sum() / (p.sum() + truth.sum())  # class 2 is absent: class 1 alone counts
    torch.testing.assert_close(found, by_hand)
    assert float(soft_dice_loss(logits, torch.zeros_like(targets), weights)) == 0.0


def test_dice_cross_entropy_is_the_sum():
    logits = torch.randn(1, 2, 3, 3)
    labels = torch.randint(0, 2, (1, 3, 3))
    targets = nn.functional.one_hot(labels, 2).movedim(-1, 1).float()
    weights = torch.ones(1, 1, 3, 3)
    expected = nn.functional.cross_entropy(logits, labels) + soft_dice_loss(logits, targets, weights)
    torch.testing.assert_close(dice_cross_entropy(logits, targets, weights), expected)


def item(shape, label=True, value=1):
    image = MetaTensor(torch.rand(2, 1, *shape, dtype=torch.float64))
    return {"image": image, **({"label": torch.full((2, 1, *shape), value, dtype=torch.uint8)} if label else {})}


def test_domains_become_plain_tensors():
    batch = prepare_domains(
        {"source": item((4, 4)), "target": item((4, 4), label=False), "held_out": item((4, 4))},
        torch.device("cpu"),
        3,
    )
    assert type(batch.source.image) is torch.Tensor
    assert batch.source.image.dtype == torch.float32
    assert type(batch.target_image) is torch.Tensor
    assert batch.source_labels.dtype == torch.int64
    assert batch.held_out is not None
    assert prepare_domains({"source": item((4,)), "target": item((4,))}, torch.device("cpu"), 3).held_out is None


def test_domains_of_different_shape_are_refused():
    with pytest.raises(InputError, match=r"source \(2, 1, 4, 4\), target \(2, 1, 4, 5\)"):
        prepare_domains({"source": item((4, 4)), "target": item((4, 5), label=False)}, torch.device("cpu"), 3)
    parts = {"source": item((4, 4)), "target": item((4, 4), label=False), "held_out": item((5, 4))}
    with pytest.raises(InputError, match="held-out source images"):
        prepare_domains(parts, torch.device("cpu"), 3)
    with pytest.raises(ValueError, match="wanted 0 to 2"):
        prepare_domains({"source": item((4, 4), value=9), "target": item((4, 4))}, torch.device("cpu"), 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("hard", HardLabels), ("soft", SoftLabels), ("fixed", FixedTemperature), ("learned", LearnedTemperature)],
)
def test_labellers_by_name(name, kind):
    labeller = make_labeller(name, 3, 1, 2, threshold=0.7, weighting="confidence", fixed_temperature=3.0)
    assert type(labeller) is kind
    assert name in LABELLERS
    assert (labeller.threshold, labeller.weighting) == (0.7, "confidence")
    network = nn.Conv2d(1, 3, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    assert (make_temperature_learner(labeller, network, optimizer) is not None) == (name == "learned")
    assert name != "fixed" or float(labeller.temperature(torch.zeros(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)).max()) == 3


def test_unknown_labeller_is_refused():
    with pytest.raises(InputError, match=r"labeller: found 'harrd', wanted one of \['hard', 'soft', 'fixed'"):
        make_labeller("harrd", 3, 1, 2)


def test_look_ahead_of_some_layers_only():
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 1))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    learner = make_temperature_learner(make_labeller("learned", 3, 1, 2), network, optimizer, look_ahead="1.")
    assert set(learner.step.parameters) == {"1.weight", "1.bias"}
    with pytest.raises(ValueError, match="none takes the look-ahead step"):
        make_temperature_learner(make_labeller("learned", 3, 1, 2), network, optimizer, look_ahead="9.")


def test_soft_targets_minimise_the_dice_loss():
    """The classic soft Dice is least at hard predictions, whatever the targets; this one is 0 at the targets alone."""
    logits = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    targets = logits.softmax(dim=1)
    weights = torch.rand(2, 1, 6, 5, dtype=torch.float64)
    assert float(soft_dice_loss(logits, targets, weights)) == pytest.approx(0.0, abs=1e-12)
    for scale in (0.5, 2.0, 100.0):
        assert float(soft_dice_loss(scale * logits, targets, weights)) > 0.02


def test_the_dice_loss_leaves_out_classes_that_are_likeliest_nowhere():
    targets = torch.tensor([0.3, 0.6, 0.1]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    weights = torch.ones(1, 1, 4, 4)
    logits = torch.tensor([0.2, 0.5, 0.3]).log().view(1, 3, 1, 1).expand(1, 3, 4, 4)
    assert float(soft_dice_loss(logits, targets, weights)) == pytest.approx(1 - 2 * 0.5 / 1.1)
