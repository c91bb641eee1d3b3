# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labels in closed form, against SciPy, and in what all labellers share: the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy.special import softmax
from torch import nn

from dacal_med.core.pseudo_labels import (
    FixedTemperature,
    HardLabels,
    LearnedTemperature,
    PseudoLabeller,
    SoftLabels,
    quality_weight,
)
from dacal_med.core.temperature import MetaTemperatureNetwork
from dacal_med.io.errors import InputError

SIZES = {2: (5, 6), 3: (3, 4, 5)}


def map_like(logits: torch.Tensor) -> torch.Tensor:
    """Temperatures from 0.5 to 3, another one in every voxel."""
    steps = torch.linspace(0.5, 3.0, logits[:, :1].numel(), dtype=torch.float64)
    return steps.view_as(logits[:, :1]).float()


class Recorder(nn.Module):
    """Stands in for the temperature network: keeps what it gets, returns a known map."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))
        self.seen: list[torch.Tensor] = []

    def forward(self, logits: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        self.seen = [logits, image]
        return self.factor * map_like(logits)


LABELLERS = {
    "hard": HardLabels,
    "soft": SoftLabels,
    "sharper": lambda **options: FixedTemperature(0.2, **options),
    "softer": lambda **options: FixedTemperature(7.0, **options),
    "learned": lambda **options: LearnedTemperature(Recorder(), **options),
    "base": PseudoLabeller,
}


def problem(seed: int, dims: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, *SIZES[dims], generator=g)
    return logits, torch.randn(2, 1, *SIZES[dims], generator=g)


def logits_with_confidences(confidences: torch.Tensor, classes: int = 3) -> torch.Tensor:
    """Logits ``(B, C, *spatial)`` whose softmax has these largest probabilities, of class 1, the rest alike."""
    rest = (1 - confidences) / (classes - 1)
    return torch.stack([confidences if c == 1 else rest for c in range(classes)], dim=1).log() + 5.0


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(2, 6),
    name=st.sampled_from(sorted(LABELLERS)),
)
def test_labels_are_probabilities(seed, dims, classes, name):
    logits, image = problem(seed, dims, classes)
    labels = LABELLERS[name]()(logits, image)
    assert labels.probabilities.shape == logits.shape
    assert labels.probabilities.dtype == torch.float32
    assert (labels.probabilities >= 0).all()
    ones = torch.ones_like(labels.weights)
    torch.testing.assert_close(labels.probabilities.sum(1, keepdim=True), ones, rtol=0, atol=1e-6)
    assert labels.weights.shape == (2, 1, *SIZES[dims])
    assert labels.quality.shape == (2,)
    # No temperature changes the most probable class.
    at_largest = labels.probabilities.gather(1, logits.argmax(1, keepdim=True))
    assert torch.equal(at_largest, labels.probabilities.amax(1, keepdim=True))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 6))
def test_hard_labels_are_one_hot_at_the_largest_logit(seed, dims, classes):
    logits, image = problem(seed, dims, classes)
    labels = HardLabels()(logits, image)
    wanted = np.moveaxis(np.eye(classes)[np.argmax(logits.numpy(), axis=1)], -1, 1)
    assert np.array_equal(labels.probabilities.numpy(), wanted)
    assert labels.temperature is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), temperature=st.floats(0.05, 20.0))
def test_a_temperature_divides_the_logits(seed, dims, temperature):
    logits, image = problem(seed, dims)
    fixed = FixedTemperature(temperature)(logits, image)
    wanted = softmax(logits.double().numpy() / temperature, axis=1)
    assert np.allclose(fixed.probabilities.numpy(), wanted, rtol=0, atol=2e-5)
    assert torch.equal(fixed.temperature, torch.full((2, 1, *SIZES[dims]), temperature))
    soft = SoftLabels()(logits, image)
    assert np.allclose(soft.probabilities.numpy(), softmax(logits.double().numpy(), axis=1), rtol=0, atol=1e-6)
    assert torch.equal(soft.temperature, torch.ones(2, 1, *SIZES[dims]))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("temperature", [0.25, 0.5, 1.0, 2.0, 8.0])
def test_closed_form_of_two_classes(dims, temperature):
    logits = torch.tensor([1.5, -0.5]).view(1, 2, *[1] * dims)
    labels = FixedTemperature(temperature)(logits, torch.zeros(1, 1, *[1] * dims))
    wanted = 1 / (1 + math.exp(-2.0 / temperature))
    assert labels.probabilities.flatten().tolist() == pytest.approx([wanted, 1 - wanted], rel=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_a_temperature_undoes_overconfidence(dims, temperature):
    """Logits that are T times too large give the true probabilities back at T."""
    truth = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, *[1] * dims)
    labels = FixedTemperature(temperature)(temperature * truth.log() + 3.0, torch.zeros(1, 1, *[1] * dims))
    torch.testing.assert_close(labels.probabilities, truth, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_temperature_one_is_soft(dims):
    logits, image = problem(0, dims)
    fixed, soft, base = (make()(logits, image) for make in (lambda: FixedTemperature(1), SoftLabels, PseudoLabeller))
    assert torch.equal(fixed.probabilities, soft.probabilities)
    assert torch.equal(base.probabilities, soft.probabilities)


@pytest.mark.parametrize("dims", [2, 3])
def test_hard_labels_are_the_limit_of_low_temperature(dims):
    classes = 4
    # In every voxel the two largest of these logits are at least 1 apart.
    order = torch.stack([torch.randperm(classes) for _ in range(2 * math.prod(SIZES[dims]))]).float()
    logits = order.view(2, *SIZES[dims], classes).movedim(-1, 1)
    image = torch.zeros(2, 1, *SIZES[dims])
    hard = HardLabels()(logits, image).probabilities
    gaps = [float((FixedTemperature(t)(logits, image).probabilities - hard).abs().max()) for t in (1, 0.3, 0.1, 0.005)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.3
    # 1 - p is close to exp(-1 / T) for the next class and lower orders.
    assert gaps[2] == pytest.approx(math.exp(-10), rel=1e-2)
    assert gaps[3] == 0.0


@pytest.mark.parametrize("dims", [2, 3])
def test_high_temperature_gives_equal_probabilities(dims):
    logits, image = problem(1, dims, 4)
    probabilities = FixedTemperature(1e7)(logits, image).probabilities
    torch.testing.assert_close(probabilities, torch.full_like(logits, 0.25), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
def test_learned_temperature_comes_from_the_network(dims):
    logits, image = problem(2, dims)
    network = Recorder()
    labeller = LearnedTemperature(network)
    low = logits.to(torch.bfloat16).requires_grad_(True)
    rounded = low.detach().float()
    for ask in (labeller, labeller.temperature):
        ask(low, MetaTensor(image))
        seen_logits, seen_image = network.seen
        assert torch.equal(seen_logits, rounded)
        assert seen_logits.dtype == torch.float32
        assert not seen_logits.requires_grad
        assert type(seen_image) is torch.Tensor
        assert torch.equal(seen_image, image)
    labels = labeller(low, image)
    temperature = map_like(logits)
    assert torch.equal(labels.temperature, temperature)
    wanted = softmax(rounded.double().numpy() / temperature.double().numpy(), axis=1)
    assert np.allclose(labels.probabilities.detach().numpy(), wanted, rtol=0, atol=1e-6)
    assert list(labeller.parameters()) == [network.factor]


@pytest.mark.parametrize("dims", [2, 3])
def test_a_fresh_temperature_network_gives_soft_labels(dims):
    logits, image = problem(3, dims)
    learned = LearnedTemperature(MetaTemperatureNetwork(3, 1, dims))(logits, image)
    soft = SoftLabels()(logits, image)
    assert torch.equal(learned.probabilities, soft.probabilities)
    assert torch.equal(learned.temperature, soft.temperature)
    assert torch.equal(learned.weights, soft.weights)


@pytest.mark.parametrize("dims", [2, 3])
def test_quality_is_the_share_above_the_threshold(dims):
    probabilities = torch.full((3, 2, *[2] * dims), 0.5)
    flat = probabilities.view(3, 2, -1)
    flat[0, :, 0] = torch.tensor([0.1, 0.9])
    flat[0, :, 1] = torch.tensor([0.75, 0.25])  # equal to the threshold: does not count
    flat[1] = torch.tensor([0.8, 0.2]).view(2, 1)
    assert quality_weight(probabilities, 0.75).tolist() == [1 / 2**dims, 1.0, 0.0]
    assert quality_weight(probabilities, 0.5).tolist() == [2 / 2**dims, 1.0, 0.0]
    assert quality_weight(probabilities, 0.0).tolist() == [1.0, 1.0, 1.0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), threshold=st.floats(0.0, 0.99))
def test_quality_equals_numpy(seed, dims, threshold):
    probabilities = problem(seed, dims)[0].softmax(1)
    confident = probabilities.numpy().max(axis=1) > np.float32(threshold)
    wanted = confident.reshape(2, -1).mean(axis=1)
    assert np.allclose(quality_weight(probabilities, threshold).numpy(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LABELLERS)
@pytest.mark.parametrize("weighting", ["quality", "confidence", "none"])
def test_weights_come_from_the_unscaled_logits_whatever_the_labels(name, weighting, dims):
    size = (4, 2, 2)[:dims]
    confidences = torch.full((2, *size), 0.5)
    confidences[0, 0] = 0.95  # a quarter of the first sample, three quarters of the second
    confidences[1, :3] = 0.99
    labeller = LABELLERS[name](threshold=0.9, weighting=weighting)
    labels = labeller(logits_with_confidences(confidences), torch.zeros(2, 1, *size))
    assert labels.quality.tolist() == [0.25, 0.75]
    wanted = {
        "quality": torch.tensor([0.25, 0.75]).view(2, 1, *[1] * dims).expand(2, 1, *size),
        "confidence": (confidences > 0.9).float().unsqueeze(1),
        "none": torch.ones(2, 1, *size),
    }
    assert torch.equal(labels.weights, wanted[weighting])


@pytest.mark.parametrize("weighting", ["quality", "confidence", "none"])
@pytest.mark.parametrize("name", LABELLERS)
def test_a_scaled_softmax_would_give_other_weights(name, weighting):
    """The example above can tell: at temperatures 0.2 and 7 other voxels pass the threshold."""
    logits = logits_with_confidences(torch.tensor([[[0.5, 0.95]]]))
    for temperature, wanted in ((0.2, [True, True]), (7.0, [False, False])):
        confident = (logits / temperature).softmax(1).amax(1) > 0.9
        assert confident.flatten().tolist() == wanted
    labels = LABELLERS[name](threshold=0.9, weighting=weighting)(logits, torch.zeros(1, 1, 1, 2))
    found = {"quality": [0.5, 0.5], "confidence": [0.0, 1.0], "none": [1.0, 1.0]}
    assert labels.weights.flatten().tolist() == found[weighting]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LABELLERS)
def test_calibrated_weights_are_the_confidence_of_the_label(name, dims):
    """That of the soft label at its own temperature; hard labels, whose own is 1 everywhere, take the teacher's."""
    logits, image = problem(9, dims)
    labels = LABELLERS[name](weighting="calibrated")(logits, image)
    soft = logits.softmax(1) if name == "hard" else labels.probabilities.detach()
    torch.testing.assert_close(labels.weights, soft.amax(1, keepdim=True))
    assert not labels.weights.requires_grad


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LABELLERS)
def test_nothing_but_the_temperature_gets_a_gradient(name, dims):
    logits, image = problem(4, dims)
    logits.requires_grad_(True)
    image.requires_grad_(True)
    labels = LABELLERS[name]()(logits, image)
    assert not labels.weights.requires_grad
    assert not labels.quality.requires_grad
    assert labels.probabilities.requires_grad == (name == "learned")
    if name == "learned":
        labels.probabilities.square().sum().backward()
        assert logits.grad is None
        assert image.grad is None


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["soft", "sharper", "learned"])
def test_gradient_into_the_temperature(name, dims):
    """``dp_c/dT = -p_c (z_c - sum_k p_k z_k) / T^2``."""
    logits, _ = problem(5, dims)
    temperature = map_like(logits).requires_grad_(True)
    labels = LABELLERS[name]().from_temperature(logits.requires_grad_(True), temperature)
    upstream = torch.randn_like(labels.probabilities)
    labels.probabilities.backward(upstream)
    z, p = logits.detach(), labels.probabilities.detach()
    derivative = -p * (z - (p * z).sum(1, keepdim=True)) / temperature.detach().square()
    wanted = (upstream * derivative).sum(1, keepdim=True)
    torch.testing.assert_close(temperature.grad, wanted, rtol=1e-4, atol=1e-5)
    assert labels.temperature is temperature
    assert logits.grad is None


@pytest.mark.parametrize("dims", [2, 3])
def test_the_network_of_a_learned_temperature_gets_a_gradient(dims):
    logits, image = problem(6, dims)
    labeller = LearnedTemperature(MetaTemperatureNetwork(3, 1, dims))
    labeller(logits, image).probabilities.square().sum().backward()
    last = labeller.network.layers[-1]
    assert last.weight.grad.abs().max() > 0
    assert last.bias.grad.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LABELLERS)
def test_low_precision_logits_give_float32(name, dtype):
    logits, image = problem(7, 2)
    logits = logits.to(dtype)
    labels = LABELLERS[name]()(logits, image)
    wanted = LABELLERS[name]()(logits.float(), image)
    assert labels.probabilities.dtype == labels.weights.dtype == labels.quality.dtype == torch.float32
    assert torch.equal(labels.probabilities, wanted.probabilities)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("make", "temperature"), [(SoftLabels, 1.0), (lambda: FixedTemperature(0.3), 0.3)])
def test_float64_logits_keep_their_precision(make, temperature, dims):
    logits, image = (x.double() for x in problem(7, dims))
    labels = make()(logits, image)
    assert labels.probabilities.dtype == torch.float64
    assert np.allclose(labels.probabilities.numpy(), softmax(logits.numpy() / temperature, axis=1), rtol=1e-12, atol=0)
    assert HardLabels()(logits, image).probabilities.dtype == torch.float64


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", LABELLERS)
def test_metatensors_become_plain(name, dims):
    logits, image = problem(8, dims)
    labels = LABELLERS[name]()(MetaTensor(logits), MetaTensor(image))
    for value in (labels.probabilities, labels.weights, labels.quality):
        assert type(value) is torch.Tensor
    assert torch.equal(labels.probabilities, LABELLERS[name]()(logits, image).probabilities)


@pytest.mark.parametrize("name", LABELLERS)
def test_wrong_settings_are_refused(name):
    for threshold in (-0.1, 1.0, math.nan):
        with pytest.raises(ValueError, match=r"threshold: found .*, wanted a number in \[0, 1\)"):
            LABELLERS[name](threshold=threshold)
    with pytest.raises(ValueError, match="weighting: found 'entropy', wanted one of"):
        LABELLERS[name](weighting="entropy")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperatures_that_are_not_positive_are_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature: found .*, wanted a positive number"):
        FixedTemperature(temperature)


def test_settings_are_printed():
    assert repr(HardLabels(0.9, "none")) == "HardLabels(threshold=0.9, weighting='none')"
    found = repr(FixedTemperature(2))
    assert found == "FixedTemperature(temperature=2.0, threshold=0.968, weighting='quality')"


@pytest.mark.parametrize("dims", SIZES)
@pytest.mark.parametrize("name", LABELLERS)
@pytest.mark.parametrize("weighting", ["quality", "confidence", "none"])
def test_ignored_rows_weigh_nothing_and_change_nothing_else(name, weighting, dims):
    logits, image = 3 * torch.randn(2, 3, *SIZES[dims]), torch.zeros(2, 1, *SIZES[dims])
    options = {"threshold": 0.6, "weighting": weighting}
    plain, cut = (
        LABELLERS[name](**options, **rows)(logits, image) for rows in ({}, {"ignore_top": 2, "ignore_bottom": 1})
    )
    wanted = plain.weights.clone()
    wanted[..., :2] = 0.0
    wanted[..., -1:] = 0.0
    assert torch.equal(cut.weights, wanted)
    assert torch.equal(cut.probabilities, plain.probabilities)
    assert torch.equal(cut.quality, plain.quality)


def test_another_labeller_has_the_same_weights():
    labeller = SoftLabels(threshold=0.5, weighting="none", ignore_top=1)
    logits = torch.randn(1, 3, 4, 4)
    hard = HardLabels(**labeller.weight_options)
    assert torch.equal(hard(logits, logits).weights, labeller(logits, logits).weights)
    assert repr(labeller) == "SoftLabels(threshold=0.5, weighting='none', ignore_top=1, ignore_bottom=0)"


def test_rows_that_are_not_there_are_named():
    with pytest.raises(InputError, match="wanted at least 0"):
        HardLabels(ignore_top=-1)
    with pytest.raises(InputError, match="for crops of 4 rows"):
        HardLabels(ignore_top=2, ignore_bottom=2)(torch.zeros(1, 2, 8, 4), torch.zeros(1, 1, 8, 4))
