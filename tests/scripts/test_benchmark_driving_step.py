# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the step on street scenes: what it writes. No times are asserted."""

from __future__ import annotations

import json
import math

import pytest

from scripts import benchmark_driving_step as benchmark
from tests.processes import children_here


def test_small_run_writes_every_row(tmp_path, monkeypatch, capsys):
    children_here(monkeypatch, benchmark)
    benchmark.main(["--small", "--json", str(tmp_path / "rows.json")])
    content = json.loads((tmp_path / "rows.json").read_text())
    assert "threads" in content["machine"]
    assert [row["name"] for row in content["rows"]] == [row.name for row in benchmark.ROWS]
    for row in content["rows"]:
        assert row["encoder"] == "mit_b0" and row["size"] == 64
        assert all(math.isfinite(row[key]) and row[key] > 0 for key in benchmark.MEASURED)
    host = content["rows"][0]
    assert (host["time_ratio"], host["memory_ratio"]) == (1.0, 1.0)
    assert content["rows"][3]["time_ratio"] == content["rows"][3]["cpu_seconds"] / host["cpu_seconds"]
    printed = capsys.readouterr().out
    assert all(f"| {row.name} |" in printed for row in benchmark.ROWS)


@pytest.mark.parametrize("arguments", [["--size", "0"], ["--rounds", "x"], ["--quick"]])
def test_mistakes_are_named(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
