# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Temperature and vector scaling: known parameters come back, netcal agrees, odd predictions break nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from torch import Tensor
from torch.nn import functional

from dacal_med.comparison.calibrators import (
    TEMPERATURES,
    Prediction,
    TemperatureScaling,
    VectorScaling,
    fit_temperature,
    fit_vector,
    log_probabilities,
    sample_voxels,
)
from dacal_med.io.errors import InputError

SIZES = {2: (80, 75), 3: (24, 25, 10)}
FITS = [fit_temperature, fit_vector]


def drawn(logits: Tensor, seed: int = 0) -> Tensor:
    """Draw a label of each voxel from the softmax of ``(1, C, *spatial)`` logits."""
    g = torch.Generator().manual_seed(seed)
    flat = logits.softmax(1).movedim(1, -1).flatten(0, -2)
    return torch.multinomial(flat, 1, generator=g).view(1, 1, *logits.shape[2:])


def predictions(distort, dims: int = 2, count: int = 4, classes: int = 4, seed: int = 0) -> list[Prediction]:
    """Images with labels drawn from a softmax, whose logits are then distorted."""
    g = torch.Generator().manual_seed(seed)
    result = []
    for k in range(count):
        logits = 2 * torch.randn(1, classes, *SIZES[dims], generator=g)
        label = drawn(logits, seed=1000 * seed + k)
        result.append(Prediction(distort(logits).softmax(1), torch.randn(label.shape, generator=g), label))
    return result


def column(values: list[float], logits: Tensor) -> Tensor:
    return torch.tensor(values).view(1, -1, *[1] * (logits.dim() - 2))


def nll(logits: Tensor, labels: Tensor) -> float:
    return float(functional.cross_entropy(logits, labels))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_a_known_factor(dims, factor):
    fitted = fit_temperature(predictions(lambda z: factor * z, dims))
    assert fitted.temperature == pytest.approx(factor, rel=0.02)
    assert fitted.describe() == {"temperature": fitted.temperature}


def test_temperature_of_two_logits_in_closed_form():
    # Probability 0.9 everywhere and right in 3 voxels of 4: the calibrated confidence must be 0.75.
    probabilities = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    label = torch.tensor([0, 0, 0, 1]).view(1, 1, 2, 2)
    image = torch.zeros(1, 1, 2, 2)
    fitted = fit_temperature([Prediction(probabilities, image, label)])
    assert fitted.temperature == pytest.approx(np.log(9) / np.log(3), rel=1e-5)
    torch.testing.assert_close(fitted(probabilities, image)[:, 0], torch.full((1, 2, 2), 0.75))


@pytest.mark.parametrize(("label", "bound"), [(0, TEMPERATURES[0]), (1, TEMPERATURES[1])])
def test_temperature_stays_within_bounds(label, bound):
    probabilities = torch.tensor([0.6, 0.4]).view(1, 2, 1).expand(1, 2, 5)
    data = [Prediction(probabilities, torch.zeros(1, 1, 5), torch.full((1, 1, 5), label))]
    assert fit_temperature(data).temperature == pytest.approx(bound, rel=1e-4)


@pytest.mark.parametrize("dims", [2, 3])
def test_vector_undoes_known_weights_and_biases(dims):
    weight, bias = [0.5, 1.0, 2.0, 1.5], [1.0, -1.0, 0.5, -0.5]
    g = torch.Generator().manual_seed(0)
    data = []
    for k in range(4):
        p = (2 * torch.randn(1, 4, *SIZES[dims], generator=g)).softmax(1)
        label = drawn(column(weight, p) * p.log() + column(bias, p), seed=k)
        data.append(Prediction(p, torch.zeros(label.shape), label))
    fitted = fit_vector(data)
    assert fitted.weight == pytest.approx(weight, abs=0.1)
    assert fitted.bias == pytest.approx(bias, abs=0.15)
    assert sum(fitted.bias) == pytest.approx(0.0, abs=1e-9)
    assert fitted.describe() == {"weight": list(fitted.weight), "bias": list(fitted.bias)}


@pytest.mark.parametrize("classes", [2, 4])
def test_vector_is_never_worse_than_temperature_on_what_both_saw(classes):
    for seed in range(3):
        data = predictions(lambda z: 4 * z + column([0.5 * k for k in range(z.shape[1])], z), 2, 2, classes, seed)
        logits, labels = sample_voxels(data, 255, 5000, seed)
        temperature = fit_temperature(data, max_voxels=5000, seed=seed).temperature
        vector = fit_vector(data, max_voxels=5000, seed=seed)
        scaled = logits * torch.tensor(vector.weight) + torch.tensor(vector.bias)
        assert nll(scaled, labels) < nll(logits / temperature, labels)


def test_vector_equals_temperature_where_nothing_else_helps():
    # Symmetric in its classes: the mirrored half makes any bias useless.
    (half,) = predictions(lambda z: 2 * z, count=1, classes=2)
    mirrored = Prediction(half.probabilities.flip(1), half.image, 1 - half.label)
    vector, temperature = fit_vector([half, mirrored]), fit_temperature([half, mirrored]).temperature
    assert vector.bias == pytest.approx([0.0, 0.0], abs=1e-4)
    assert sum(vector.weight) / 2 == pytest.approx(1 / temperature, abs=2e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_netcal_agrees(classes):
    scaling = pytest.importorskip("netcal.scaling")
    data = predictions(lambda z: 1.5 * z + column([0.3 * k for k in range(z.shape[1])], z), count=1, classes=classes)
    logits, labels = sample_voxels(data, 255, 10**6, 0)
    p, y = logits.exp().numpy(), labels.numpy()
    # In float64 and far from 0, where netcal is right.
    theirs = scaling.TemperatureScaling().fit(p, y, tensorboard=False)
    assert fit_temperature(data).temperature == pytest.approx(1 / float(np.squeeze(theirs.temperature)), abs=1e-3)
    if classes > 2:
        theirs = scaling.LogisticCalibration().fit(p, y, tensorboard=False)
        ours = fit_vector(data)
        assert ours.weight == pytest.approx(theirs.weights.tolist(), abs=5e-3)
        assert ours.bias == pytest.approx((theirs.intercept - theirs.intercept.mean()).tolist(), abs=5e-3)


@pytest.mark.parametrize("dims", [2, 3])
def test_probabilities_stay_probabilities_and_temperature_keeps_the_class(dims):
    (data,) = predictions(lambda z: 3 * z, dims, count=1)
    for calibrator in (
        TemperatureScaling(2.5),
        TemperatureScaling(0.3),
        VectorScaling((1.0, 0.5, 2.0, 0.1), (0.0, 1.0, -1.0, 0.0)),
    ):
        result = calibrator(data.probabilities, data.image)
        assert result.shape == data.probabilities.shape and result.dtype == torch.float32
        torch.testing.assert_close(result.sum(1), torch.ones_like(result[:, 0]), rtol=0, atol=1e-5)
        if isinstance(calibrator, TemperatureScaling):
            assert torch.equal(result.argmax(1), data.probabilities.argmax(1))
    torch.testing.assert_close(TemperatureScaling(1.0)(data.probabilities, data.image), data.probabilities)
    same = VectorScaling((1.0,) * 4, (0.0,) * 4)(data.probabilities, data.image)
    torch.testing.assert_close(same, data.probabilities)


def test_vector_scaling_in_closed_form():
    p = torch.tensor([0.5, 0.25, 0.25]).view(1, 3, 1, 1)
    result = VectorScaling((2.0, 1.0, 1.0), (0.0, 0.0, float(np.log(2.0))))(p, torch.zeros(1, 1, 1, 1))
    torch.testing.assert_close(result.flatten(), torch.tensor([0.25, 0.25, 0.5]))


@pytest.mark.parametrize("fit", FITS)
def test_exact_zeros_do_no_harm(fit):
    data = predictions(lambda z: 60 * z, count=2)
    assert all(bool((d.probabilities == 0).any()) for d in data)
    fitted = fit(data)
    result = fitted(data[0].probabilities, data[0].image)
    assert bool(result.isfinite().all())
    assert all(np.isfinite(np.ravel(x)).all() for x in fitted.describe().values())
    assert float(log_probabilities(torch.zeros(1))) == pytest.approx(np.log(np.finfo(np.float32).tiny))


@pytest.mark.parametrize("fit", FITS)
def test_a_class_without_labels_does_not_break(fit):
    data = [
        Prediction(d.probabilities, d.image, torch.where(d.label == 3, 255, d.label))
        for d in predictions(lambda z: 2 * z)
    ]
    result = fit(data)(data[0].probabilities, data[0].image)
    assert bool(result.isfinite().all())
    assert float(result[:, 3].mean()) > 0.0


def test_a_class_without_labels_keeps_the_temperature_in_vector_scaling():
    data = [
        Prediction(d.probabilities, d.image, torch.where(d.label == 3, 255, d.label))
        for d in predictions(lambda z: 2 * z)
    ]
    assert fit_vector(data).weight[3] == pytest.approx(1 / fit_temperature(data).temperature, rel=1e-12)


def test_voxels_are_drawn_once_and_from_each_image_in_proportion():
    # Every voxel has a probability of its own: the first image has the first 100, half of them ignored, and so on.
    data = []
    for values in torch.linspace(0.001, 0.999, 600).split([100, 200, 300]):
        p = values.view(1, 1, 2, -1)
        label = torch.tensor([255, 1], dtype=torch.uint8).view(1, 1, 2, 1).expand(p.shape)
        data.append(Prediction(torch.cat([p, 1 - p], dim=1), torch.zeros_like(p), label))
    labelled = torch.cat([d.probabilities[0, 0, 1] for d in data])

    def indices(most: int) -> Tensor:
        logits, labels = sample_voxels(data, 255, most, seed=0)
        assert labels.tolist() == [1] * len(logits)
        return (logits[:, :1].exp() - labelled).abs().argmin(dim=1)

    for most, shares in {60: [10, 20, 30], 7: [1, 2, 4], 10**6: [50, 100, 150]}.items():
        drawn_indices = indices(most)
        assert drawn_indices.unique().numel() == sum(shares)
        assert torch.bucketize(drawn_indices, torch.tensor([49, 149])).bincount().tolist() == shares


@pytest.mark.parametrize("fit", FITS)
def test_the_seed_decides_and_the_global_state_does_not(fit):
    data = predictions(lambda z: 2 * z)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    first = fit(data, max_voxels=500, seed=3).describe()
    assert torch.equal(torch.random.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    torch.manual_seed(99)
    assert fit(data, max_voxels=500, seed=3).describe() == first
    assert fit(data, max_voxels=500, seed=4).describe() != first
    assert json.loads(json.dumps(first)) == first


def test_batches_and_meta_tensors_are_as_single_plain_images():
    single = predictions(lambda z: 2 * z)
    batch = Prediction(*(torch.cat([getattr(d, n) for d in single]) for n in ("probabilities", "image", "label")))
    meta = Prediction(MetaTensor(batch.probabilities), MetaTensor(batch.image), MetaTensor(batch.label))
    expected = fit_temperature(single).temperature
    assert fit_temperature([batch]).temperature == pytest.approx(expected, rel=1e-5)
    fitted = fit_temperature([meta])
    assert fitted.temperature == pytest.approx(expected, rel=1e-5)
    assert type(fitted(meta.probabilities, meta.image)) is Tensor


@pytest.mark.parametrize("fit", FITS)
def test_what_cannot_be_fitted_on_is_refused(fit):
    (good,) = predictions(lambda z: z, count=1)
    ignored = Prediction(good.probabilities, good.image, torch.full_like(good.label, 255))
    cases = {
        "nothing to fit": [[], [ignored]],
        "softmax first": [
            [Prediction(good.probabilities.log(), good.image, good.label)],
            [Prediction(good.probabilities * float("nan"), good.image, good.label)],
        ],
        r"labels \[.*4\], wanted 0 to 3": [[Prediction(good.probabilities, good.image, good.label + 1)]],
        "prediction 1": [[good, Prediction(good.probabilities, good.image, good.label[:, 0])]],
    }
    for message, inputs in cases.items():
        for data in inputs:
            with pytest.raises(InputError, match=message):
                fit(data)
    with pytest.raises(InputError, match="nothing to fit"):
        fit([good], max_voxels=0)
    with pytest.raises(InputError, match="wanted 0 to 3"):
        fit([ignored], ignore_index=None)
    with pytest.raises(InputError, match="wanted 0 to 3"):
        fit([ignored], ignore_index=-1)
