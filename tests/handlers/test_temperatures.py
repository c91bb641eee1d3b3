# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Temperature maps of an evaluation: from the pass that predicts, and equal to those of a pass of their own."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.inferers import SimpleInferer, SlidingWindowInferer

from dacal_med.engines import CalibrationEvaluator, make_labeller
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.handlers import EvaluationReport
from tests.engines.builders import CLASSES, blobs, tiny_network

NAMES = ["background", "one", "two"]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_each_window_is_predicted_once(dims, whole, tmp_path):
    inferer = (
        SimpleInferer() if whole else SlidingWindowInferer([8] * dims, sw_batch_size=1, overlap=0.5, mode="gaussian")
    )
    network, labeller = tiny_network(dims).eval(), make_labeller("learned", CLASSES, 1, dims)
    torch.manual_seed(1)
    torch.nn.init.normal_(labeller.network.layers[-1].weight)  # a fresh one gives 1 everywhere
    data = blobs(3, dims, -1.0, 9)
    evaluator = CalibrationEvaluator("cpu", data, network, NAMES, inferer)
    calls, found = [], []
    network.register_forward_hook(lambda *_: calls.append(1))
    report = EvaluationReport(evaluator, tmp_path)
    evaluator.add_event_handler(Events.ITERATION_COMPLETED, lambda: found.append(dict(evaluator.state.output)))
    report.measure(network, 0)
    alone = len(calls)
    assert alone == 3 * (1 if whole else 3**dims)
    without = [output["probabilities"] for output in found]
    assert all(output["map"] is None and "temperature" not in output for output in found)
    scores = report.measure(network, 0, labeller)
    assert len(calls) == 2 * alone
    assert scores["temperature"]["std"] > 0.0
    for item, before, output in zip(data, without, found[3:], strict=True):
        assert torch.allclose(output["probabilities"], before, rtol=0, atol=1e-6)
        with torch.no_grad():
            image = item["image"][None]
            wanted = inferer(image, lambda window: labeller.temperature(network(window), window))
            assert torch.equal(predict_probabilities(inferer, network, image), before)
        assert torch.allclose(output["temperature"], wanted, rtol=1e-6)
        assert output["temperature"].shape == (1, 1, *image.shape[2:])
    # And the next one without a labeller has no map.
    assert "temperature" not in report.measure(network, 0)
