# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The latency benchmark: every format has its turn in every round, and ratios are taken within rounds."""

from __future__ import annotations

import torch

from scripts.benchmark_export import BARE, measure, table


def test_formats_take_turns_in_random_order():
    calls = []

    def clock(predict, image):
        calls.append(predict(image))
        return float(len(calls))

    names = [BARE, "a", "b"]
    predictors = {name: (lambda image, name=name: name) for name in names}
    times = measure(predictors, torch.zeros(1), 20, clock)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 63, 3)]
    assert [sorted(names_of_round) for names_of_round in rounds] == [sorted(names)] * 21
    assert {names_of_round[0] for names_of_round in rounds} == set(names)
    # The first round warms up and does not count.
    assert all(len(values) == 20 and min(values) > 3 for values in times.values())


def test_ratios_are_taken_within_rounds():
    """A round in which the machine was slow for all of them is no outlier."""
    times = {BARE: [1.0, 1.0, 10.0], "a": [0.5, 0.5, 5.0]}
    lines = table(times).splitlines()
    assert lines[2] == f"| {BARE} | 1000.0 | 1.000 | 1.000 to 1.000 |"
    assert lines[3] == "| a | 500.0 | 0.500 | 0.500 to 0.500 |"
