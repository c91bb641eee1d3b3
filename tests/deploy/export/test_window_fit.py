# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Fitting temperature and vector scaling to averaged windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dacal_med.comparison import calibrators
from dacal_med.deploy.export.window_fit import WindowSample, averaged_nll, fit_temperature, fit_vector, joined


def single(number: int = 4000, temperature: float = 2.0) -> WindowSample:
    """One window for each voxel, labels drawn from the probabilities at a temperature."""
    logits = 3.0 * torch.randn(number, 3)
    labels = torch.multinomial((logits / temperature).softmax(dim=1), 1)[:, 0]
    return WindowSample(logits, torch.ones(number), torch.arange(number), labels)


def overlapping(number: int = 4000, temperature: float = 1.5) -> WindowSample:
    """Two windows of unequal importance that disagree; labels drawn from the average at a temperature."""
    logits = 3.0 * torch.randn(2, number, 3)
    importance = torch.tensor([0.75, 0.25]).repeat_interleave(number)
    average = ((logits / temperature).softmax(dim=2) * torch.tensor([0.75, 0.25])[:, None, None]).sum(dim=0)
    labels = torch.multinomial(average, 1)[:, 0]
    return WindowSample(logits.flatten(0, 1), importance, torch.arange(number).repeat(2), labels)


def test_the_nll_is_that_of_the_weighted_average():
    sample = WindowSample(
        logits=torch.tensor([[0.0, 0.0], [np.log(3.0), 0.0], [0.0, np.log(9.0)]]),
        importance=torch.tensor([1.0, 3.0, 0.5]),
        voxel=torch.tensor([0, 0, 1]),
        labels=torch.tensor([0, 1]),
    )
    wanted = -(np.log((1.0 * 0.5 + 3.0 * 0.75) / 4.0) + np.log(0.9)) / 2
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    assert float(averaged_nll(joined([sample]), one, zero)) == pytest.approx(wanted, abs=1e-7)


def test_with_one_window_it_is_temperature_scaling():
    sample = single()
    prediction = calibrators.Prediction(
        sample.logits.softmax(dim=1).T[None], torch.zeros(1, 1, len(sample.labels)), sample.labels[None, None]
    )
    wanted = calibrators.fit_temperature([prediction], ignore_index=None)
    assert fit_temperature([sample]).temperature == pytest.approx(wanted.temperature, rel=1e-3)
    assert wanted.temperature == pytest.approx(2.0, rel=0.1)


def test_it_finds_the_temperature_inside_the_average_and_scaling_the_average_does_not():
    sample = overlapping()
    assert fit_temperature([sample]).temperature == pytest.approx(1.5, rel=0.1)
    windows = WindowSample(sample.logits, sample.importance, torch.arange(8000), sample.labels.repeat(2))
    assert fit_temperature([windows]).temperature > 2.0


def test_vector_scaling_is_no_worse_and_recovers_a_shifted_class():
    sample = single(temperature=1.0)
    shift = torch.tensor([0.9, -0.6, -0.3])
    shifted = WindowSample(sample.logits - shift, sample.importance, sample.voxel, sample.labels)
    fitted = fit_vector([shifted])
    np.testing.assert_allclose(fitted.bias, shift, atol=0.15)
    np.testing.assert_allclose(fitted.weight, 1.0, atol=0.1)
    values = joined([shifted])
    temperature = torch.tensor(1.0 / fit_temperature([shifted]).temperature, dtype=torch.float64)
    vector = [torch.tensor(x, dtype=torch.float64) for x in (fitted.weight, fitted.bias)]
    assert averaged_nll(values, *vector) < averaged_nll(values, temperature, torch.zeros_like(temperature))


def test_a_class_that_never_occurs_is_left_alone():
    sample = single()
    labels = sample.labels.clamp_max(1)
    fitted = fit_vector([WindowSample(sample.logits, sample.importance, sample.voxel, labels)])
    others = np.mean(fitted.bias)
    assert others == pytest.approx(0.0, abs=1e-9)
    assert fitted.weight[2] == pytest.approx(
        1.0 / fit_temperature([WindowSample(sample.logits, sample.importance, sample.voxel, labels)]).temperature
    )


def test_samples_of_several_images_keep_their_voxels_apart():
    whole = overlapping(200)
    first = whole.voxel < 80
    parts = [
        WindowSample(whole.logits[kept], whole.importance[kept], whole.voxel[kept] - start, whole.labels[part])
        for kept, start, part in ((first, 0, slice(None, 80)), (~first, 80, slice(80, None)))
    ]
    one, zero = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    assert averaged_nll(joined(parts), one, zero) == pytest.approx(float(averaged_nll(joined([whole]), one, zero)))
