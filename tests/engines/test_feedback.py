# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Feedback on the temperature: what is measured, where the loop settles, when it acts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Events
from monai.inferers import SlidingWindowInferer
from scipy.optimize import brentq
from torch import nn

from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.engines import TemperatureFeedback, make_labeller
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.engines.feedback import confidence_gap
from dacal_med.io.errors import InputError
from tests.engines.builders import CLASSES, blobs, tiny_network, tiny_trainer


def learned(dims: int = 2, **options):
    return make_labeller("learned", CLASSES, 1, dims, threshold=0.3, temperature_network=options or None)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 2**31 - 1))
def test_the_gap_and_its_slope_are_those_of_the_definition(classes, size, seed):
    """Against autograd through the inverse temperature, and the sums from which the reported scores derive."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, *size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (2, 1, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = 255
    counts = labels != 255
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    confidence = (logits * inverse).softmax(dim=1).amax(dim=1, keepdim=True)[counts].sum()
    (slope,) = torch.autograd.grad(confidence, inverse)

    found = confidence_gap(logits.softmax(dim=1), labels)
    assert float(found[1]) == pytest.approx(float(slope), abs=1e-9)
    statistics = SegmentationStatistics(classes, background=None)
    statistics.update(logits.softmax(dim=1), labels)
    expected = statistics.confidence_sum[0].sum() - statistics.confidence_correct[0].sum()
    assert float(found[0]) == pytest.approx(float(expected), abs=1e-9)
    assert int(found[2]) == int(statistics.confidence_count[0].sum())


class Following(nn.Module):
    """A teacher whose logits are those of a table, sharpened or softened as labels of some temperature make it."""

    def __init__(self, logits: torch.Tensor, labeller) -> None:
        super().__init__()
        self.logits = logits
        self.labeller = labeller

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.logits * (-0.5 * self.labeller.log_centre).exp()


@pytest.mark.parametrize(("scale", "gain"), [(4.0, 1.0), (0.4, 1.0), (1.0, 2.0)])
def test_the_loop_settles_where_confidence_equals_accuracy(scale, gain):
    torch.manual_seed(2)
    labels = torch.randint(0, CLASSES, (1, 1, 12, 12))
    logits = scale * (
        nn.functional.one_hot(labels[:, 0], CLASSES).movedim(-1, 1) + 0.7 * torch.randn(1, CLASSES, 12, 12)
    )
    labeller = learned()
    teacher = Following(logits, labeller)
    feedback = TemperatureFeedback(
        [{"image": torch.zeros(1, 12, 12), "label": labels[0]}], gain=gain, lowest=1e-3, highest=1e3
    )
    gaps = [feedback.adjust(labeller, teacher, "cpu") for _ in range(60)]
    assert abs(gaps[-1]) < 1e-4 < abs(gaps[0])

    def gap(log_centre: float) -> float:
        p = (logits * math.exp(-0.5 * log_centre)).softmax(dim=1)
        return float((p.amax(dim=1) - (p.argmax(dim=1) == labels[:, 0]).float()).mean())

    assert float(labeller.log_centre) == pytest.approx(brentq(gap, -6.0, 6.0), abs=5e-3)
    # Over-confident teachers get softer labels, under-confident ones sharper.
    assert float(labeller.log_centre) * gaps[0] > 0


def test_the_first_step_is_the_gain_times_the_temperature_that_closes_the_gap():
    labeller, network, cases = learned(), tiny_network(2), blobs(3, 2, 1.0, 5)
    inferer = SlidingWindowInferer(roi_size=(8, 8), overlap=0.5)
    feedback = TemperatureFeedback(cases, inferer, gain=0.01, highest=2.0)
    gap, slope = feedback.measure(network, "cpu")
    sums = torch.zeros(3, dtype=torch.float64)
    network.eval()
    with torch.no_grad():
        for case in cases:
            sums += confidence_gap(predict_probabilities(inferer, network, case["image"][None]), case["label"][None])
    assert (gap, slope) == pytest.approx(((sums[0] / sums[2]).item(), (sums[1] / sums[2]).item()))
    network.train()
    assert feedback.adjust(labeller, network, "cpu") == pytest.approx(gap)
    assert network.training  # as it was
    assert float(labeller.log_centre) == pytest.approx(0.01 * gap / slope)


def test_one_step_and_the_centre_are_bounded():
    labels = torch.ones(1, 8, 8, dtype=torch.uint8)
    sure = torch.full((1, CLASSES, 8, 8), 0.0)
    sure[:, 0] = 3.0  # of the wrong class, everywhere
    labeller = learned()
    feedback = TemperatureFeedback([{"image": torch.zeros(1, 8, 8), "label": labels}], highest=3.0)
    teacher = Following(sure, labeller)
    feedback.adjust(labeller, teacher, "cpu")
    assert float(labeller.log_centre) == pytest.approx(0.5)
    for _ in range(10):
        feedback.adjust(labeller, teacher, "cpu")
    assert float(labeller.log_centre) == pytest.approx(math.log(3.0))
    assert labeller.bounds == pytest.approx((0.25 * 3.0, 4.0 * 3.0))


def test_by_default_it_never_softens():
    labels = torch.ones(1, 8, 8, dtype=torch.uint8)
    sure, unsure = torch.zeros(1, CLASSES, 8, 8), torch.zeros(1, CLASSES, 8, 8)
    sure[:, 0], unsure[:, 1] = 3.0, 1.0  # wrong everywhere, and right everywhere without being sure of it
    labeller = learned()
    feedback = TemperatureFeedback([{"image": torch.zeros(1, 8, 8), "label": labels}])
    feedback.adjust(labeller, Following(sure, labeller), "cpu")
    assert float(labeller.log_centre) == 0.0
    feedback.adjust(labeller, Following(unsure, labeller), "cpu")
    assert float(labeller.log_centre) == pytest.approx(-0.5)
    feedback.adjust(labeller, Following(sure, labeller), "cpu")
    assert float(labeller.log_centre) == pytest.approx(0.0, abs=1e-6)  # what was taken back can be given back


def test_nothing_moves_where_nothing_can_be_measured():
    labeller = learned()
    case = {"image": torch.zeros(1, 8, 8), "label": torch.full((1, 8, 8), 255, dtype=torch.uint8)}
    assert math.isnan(TemperatureFeedback([case]).adjust(labeller, tiny_network(2), "cpu"))
    assert float(labeller.log_centre) == 0.0


def test_many_cases_are_thinned_evenly():
    assert TemperatureFeedback(range(100), max_cases=4).cases == [0, 25, 50, 75]
    assert TemperatureFeedback(range(3), max_cases=4).cases == [0, 1, 2]


@pytest.mark.parametrize(
    "options", [{"gain": 0.0}, {"lowest": 0.0}, {"highest": 0.9}, {"max_cases": 0}, {"gain": float("nan")}]
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        TemperatureFeedback(blobs(1, 2, 1.0, 0), **options)


@pytest.mark.parametrize("dims", [2, 3])
def test_it_acts_after_epochs_of_self_training_alone(dims):
    feedback = TemperatureFeedback(blobs(2, dims, 1.0, 3), highest=4.0)
    trainer = tiny_trainer(dims, max_epochs=4, warmup_epochs=1, settle_epochs=1, feedback=feedback)
    centres = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: centres.append(float(trainer.labeller.log_centre)))
    trainer.run()
    assert centres[:2] == [0.0, 0.0]
    assert len({*centres[1:]}) == 3
    assert trainer.state.output[0]["feedback_centre"] == pytest.approx(math.exp(centres[2]))  # of the epoch before
    assert trainer.describe()["feedback#gain"] == "2.0"


def test_without_held_out_cases_it_says_so():
    with pytest.raises(InputError, match="feedback needs held-out source cases"):
        tiny_trainer(feedback=TemperatureFeedback([]))
    hard = tiny_trainer(labeller="hard", feedback=TemperatureFeedback([]))
    assert hard.feedback is None
    hard.run()
