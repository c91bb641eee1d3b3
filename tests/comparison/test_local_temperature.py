# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Local temperature scaling: it finds temperatures that differ by place and disturbs neither classes nor randomness."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dacal_med.comparison.calibrators import Prediction, fit_temperature
from dacal_med.comparison.local_temperature import fit_local_temperature
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.io.errors import InputError

SIZES = {2: (48, 40), 3: (16, 20, 12)}
CLASSES = 3


def predictions(dims: int, seed: int, count: int = 3) -> tuple[list[Prediction], list[Tensor]]:
    """Overconfident by 4 where the image is 1 and underconfident by 2 where it is -1, with the true probabilities."""
    g = torch.Generator().manual_seed(seed)
    data, truth = [], []
    for _ in range(count):
        logits = 2 * torch.randn(1, CLASSES, *SIZES[dims], generator=g)
        blocks = torch.rand(1, 1, *[2] * dims, generator=g) > 0.5
        image = functional.interpolate(2.0 * blocks - 1.0, size=SIZES[dims], mode="nearest")
        p = logits.softmax(1)
        label = torch.multinomial(p.movedim(1, -1).flatten(0, -2), 1, generator=g).view(image.shape)
        data.append(Prediction((logits * torch.where(image > 0, 4.0, 0.5)).softmax(1), image, label))
        truth.append(p)
    return data, truth


def nll(probabilities: list[Tensor], data: list[Prediction]) -> float:
    statistics = SegmentationStatistics(CLASSES)
    for p, d in zip(probabilities, data, strict=True):
        statistics.update(p, d.label)
    return float(statistics.nll_sum[0].sum() / statistics.voxel_count[0].sum())


@pytest.mark.parametrize("dims", [2, 3])
def test_it_finds_temperatures_that_differ_by_place(dims):
    fitted_on, _ = predictions(dims, seed=0)
    fresh, truth = predictions(dims, seed=1)
    local, single = (fit(fitted_on) for fit in (fit_local_temperature, fit_temperature))
    results = [local(d.probabilities, d.image) for d in fresh]
    best, scaled = nll(truth, fresh), nll([single(d.probabilities, d.image) for d in fresh], fresh)
    # The true probabilities are the bound; a single temperature misses it by `scaled - best`.
    assert scaled - best > 0.1
    assert nll(results, fresh) - best < 0.2 * (scaled - best)
    for d, result in zip(fresh, results, strict=True):
        assert result.dtype == torch.float32 and result.shape == d.probabilities.shape
        torch.testing.assert_close(result.sum(1), torch.ones_like(result[:, 0]), rtol=0, atol=1e-5)
        assert torch.equal(result.argmax(1), d.probabilities.argmax(1))
        assert not result.requires_grad
    described = local.describe()
    assert described["temperature_min"] < 0.8 and described["temperature_max"] > 3.0
    assert described["temperature_min"] < described["temperature_mean"] < described["temperature_max"]
    assert json.loads(json.dumps(described)) == described


def test_it_starts_as_identity():
    data, _ = predictions(2, seed=0)
    local = fit_local_temperature(data, steps=1, learning_rate=0.0)
    assert local.describe() == {"temperature_mean": 1.0, "temperature_min": 1.0, "temperature_max": 1.0}
    torch.testing.assert_close(local(data[0].probabilities, data[0].image), data[0].probabilities)


def test_the_seed_decides_and_the_global_state_does_not():
    data, _ = predictions(2, seed=0)
    before = torch.random.get_rng_state()
    first = fit_local_temperature(data, seed=3, steps=5).describe()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    with torch.no_grad():
        assert fit_local_temperature(data, seed=3, steps=5).describe() == first
    assert fit_local_temperature(data, seed=4, steps=5).describe() != first


def test_ignored_voxels_play_no_part():
    (data, *_), _ = predictions(2, seed=0)
    kept = torch.arange(SIZES[2][0]).view(1, 1, -1, 1).expand(data.label.shape) >= 24
    fits = [
        fit_local_temperature(
            [Prediction(data.probabilities, data.image, data.label.where(kept, index))], ignore_index=index, steps=20
        )
        for index in (255, -1)
    ]
    assert fits[0].describe() == fits[1].describe()
    temperatures = fits[0].network(data.probabilities.clamp_min(1e-6).log(), data.image).detach()
    assert fits[0].describe()["temperature_max"] == float(temperatures[kept].max())
    assert fits[0].describe()["temperature_min"] == float(temperatures[kept].min())
    with pytest.raises(InputError, match="wanted 0 to 2"):
        fit_local_temperature(
            [Prediction(data.probabilities, data.image, data.label.where(kept, 255))], ignore_index=None
        )


def test_sparse_labels_saturated_probabilities_and_small_images_are_fine():
    (data, *_), _ = predictions(3, seed=0)
    p = functional.one_hot(data.probabilities.argmax(1), CLASSES).movedim(-1, 1).float()
    label = torch.full_like(data.label, 255)
    label[0, 0, 0, 0, 0] = int(p[0, :, 0, 0, 0].argmin())  # a confident error in a corner
    batch = Prediction(p.repeat(2, 1, 1, 1, 1), data.image.repeat(2, 1, 1, 1, 1), label.repeat(2, 1, 1, 1, 1))
    # Crops of 5 x 5 x 5 that miss the corner have nothing to learn from: a single step shows that none does.
    fitted = fit_local_temperature([batch], max_voxels=200, steps=1)
    assert fitted.describe()["temperature_min"] > 1.0
    assert bool(fitted(p, data.image).isfinite().all())


def test_nothing_to_fit_on_is_refused():
    (data, *_), _ = predictions(2, seed=0)
    for inputs in ([], [Prediction(data.probabilities, data.image, torch.full_like(data.label, 255))]):
        with pytest.raises(InputError, match="nothing to fit"):
            fit_local_temperature(inputs)
