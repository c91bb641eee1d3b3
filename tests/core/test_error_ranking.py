# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The temperature as a score of errors: against scikit-learn's AUROC, and in closed form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dacal_med.core.error_ranking import BINS, ErrorRanking


def scene(seed: int, shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(seed)
    # Centres of bins, so that binning loses nothing and the expectations are exact.
    bins = torch.randint(0, BINS, (2, 1, *shape), generator=generator)
    temperature = 0.25 * 16 ** ((bins.double() + 0.5) / BINS)
    prediction = torch.randint(0, 3, (2, 1, *shape), generator=generator)
    label = torch.where(torch.rand(prediction.shape, generator=generator) < 0.3, 255, prediction)
    wrong = torch.rand(prediction.shape, generator=generator) < temperature / 5
    return temperature, prediction, torch.where((label != 255) & wrong, (prediction + 1) % 3, label)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(40,), (12, 9), (6, 5, 7)]))
def test_auroc_is_scikit_learn_s(seed, shape):
    temperature, prediction, label = scene(seed, shape)
    ranking = ErrorRanking(0.25, 4.0)
    for k in range(2):
        ranking.update(temperature[k : k + 1], prediction[k : k + 1], label[k : k + 1])
    summary = ranking.summary()
    kept = label != 255
    regions = {"": kept, "foreground_": kept & ((label != 0) | (prediction != 0))}
    for prefix, inside in regions.items():
        wrong = (prediction != label)[inside]
        if bool(wrong.any()) and not bool(wrong.all()):
            expected = roc_auc_score(wrong.numpy(), temperature[inside].numpy())
            assert summary[prefix + "auroc"] == pytest.approx(expected, abs=1e-12)
        logs = temperature[inside].double().log()
        assert summary[prefix + "mean"] == pytest.approx(float(logs.mean().exp()), rel=1e-6)
        assert summary[prefix + "std"] == pytest.approx(float(logs.std(correction=0)), rel=1e-5)


def test_a_constant_map_says_nothing_and_a_perfect_one_everything():
    prediction = torch.tensor([0, 1, 1, 0]).view(1, 1, 4)
    label = torch.tensor([0, 1, 0, 1]).view(1, 1, 4)
    constant, perfect = ErrorRanking(0.25, 4.0), ErrorRanking(0.25, 4.0)
    constant.update(torch.full((1, 1, 4), 4.0), prediction, label)
    assert constant.summary()["auroc"] == 0.5
    assert constant.summary()["std"] == pytest.approx(0.0, abs=1e-6)
    assert constant.summary()["at_bounds"] == 1.0
    perfect.update(torch.tensor([0.25, 1.0, 2.0, 3.0]).view(1, 1, 4), prediction, label)
    assert perfect.summary()["auroc"] == 1.0
    assert perfect.summary()["at_bounds"] == 0.25
    assert perfect.summary()["foreground_at_bounds"] == 0.0


def test_what_cannot_be_measured_is_none():
    empty = ErrorRanking(0.25, 4.0).summary()
    assert set(empty.values()) == {None}
    right = ErrorRanking(0.25, 4.0)
    right.update(torch.ones(1, 1, 3), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
    assert right.summary()["auroc"] is None
    assert right.summary()["mean"] == pytest.approx(1.0, rel=3e-3)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"bounds: found 4\.0 and 0\.25"):
        ErrorRanking(4.0, 0.25)
    with pytest.raises(ValueError, match="wanted one shape"):
        ErrorRanking(0.25, 4.0).update(torch.ones(1, 1, 3), torch.ones(1, 1, 4), torch.ones(1, 1, 3))
