# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of loading on a tiny phantom: a row for each run, waits where it should find them. No times of runs."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from ignite.engine import Engine

from scripts import benchmark_loading as benchmark
from tests.bundles.builders import FIRST


@pytest.mark.parametrize("cache", ["none", "disk"])
def test_a_row_of_a_run(cache, tmp_path: Path, capsys):
    overrides = {**FIRST.tiny, "device": "cpu"}
    line = ["--one", "--dataset-dir", FIRST.make_data(tmp_path / "phantom"), "--iterations", "3"]
    benchmark.main([*line, "--caches", cache, "--workers", "0", "--set", json.dumps(overrides)])
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["bundle"], row["cache"], row["workers"], row["iterations"]) == (FIRST.name, cache, 0, 2)
    assert row["wait_seconds"] > 0 and row["step_seconds"] > 0 and row["fill_seconds"] > 0
    whole = row["wait_seconds"] + row["step_seconds"]
    assert row["waiting_share"] == pytest.approx(row["wait_seconds"] / whole, abs=2e-3)


def test_waits_and_steps_are_told_apart():
    """Batches that take long are waits, steps that take long are steps; the time between epochs is neither."""

    def slow(pause: float):
        for number in range(2):
            time.sleep(pause)
            yield number

    found = []
    for wait, step in ((0.05, 0.0), (0.0, 0.05)):
        engine = Engine(lambda _, __, step=step: time.sleep(step))
        waiting = benchmark.Waiting(engine)
        engine.run(slow(wait), max_epochs=1, epoch_length=2)
        assert len(waiting.waits) == len(waiting.steps) == 2
        found.append((sum(waiting.waits), sum(waiting.steps)))
    assert found[0][0] >= 0.1 and found[1][1] >= 0.1
