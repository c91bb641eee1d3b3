# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the bi-level step: what it writes, and that all compute one gradient. No times are asserted."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch

from scripts import benchmark_bilevel as benchmark

OURS = {v.name for v in benchmark.VARIANTS if v.library is None}
LIBRARIES = {v.library for v in benchmark.VARIANTS if v.library is not None}


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dims", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_quick_run_writes_every_row(dims, tmp_path: Path, monkeypatch, subprocess_environment, capsys):
    for key, value in subprocess_environment.items():
        monkeypatch.setenv(key, value)
    file = tmp_path / "results" / "rows.json"
    benchmark.main(["--quick", "--dims", str(dims), "--device", "cpu", "--json", str(file)])
    rows = json.loads(file.read_text())
    installed = {name for name in LIBRARIES if importlib.util.find_spec(name) is not None}
    assert {row["name"] for row in rows} == OURS | installed
    assert sum("default" in row["name"] for row in rows) == 1
    for row in rows:
        assert row["dims"] == dims
        for key in ("time_ratio", "memory_ratio", "seconds", "peak_mib"):
            assert math.isfinite(row[key]) and row[key] > 0.0, (row["name"], key)
        assert row["seconds_min"] <= row["seconds"] <= row["seconds_max"]
        assert "threads" in row["machine"]
    host = next(row for row in rows if row["name"] == "host step")
    assert (host["time_ratio"], host["memory_ratio"]) == (1.0, 1.0)
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in rows)
    assert all(f"{name}: skipped, not installed" in printed for name in LIBRARIES - installed)


@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_library_agrees_with_the_exact_gradient_through_sgd(library):
    pytest.importorskip(library)
    assert relative_error(benchmark.tiny_gradient(library), benchmark.tiny_gradient(None)) <= 1e-12
    assert benchmark.problem_of(library) is None


def test_libraries_agree_with_each_other_through_adamw():
    pytest.importorskip("higher")
    pytest.importorskip("torchopt")
    # The step count is a float32 tensor, from which each computes its bias corrections in its own way.
    found = [benchmark.tiny_gradient(library, torch.optim.AdamW) for library in ("higher", "torchopt")]
    assert relative_error(*found) <= 1e-4


def test_a_library_that_fails_is_named_with_the_reason(monkeypatch, capsys):
    def fail(*_: object) -> torch.Tensor:
        raise AttributeError("no such hook")

    monkeypatch.setattr(benchmark, "tiny_gradient", fail)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(benchmark, "benchmark", lambda settings, variants, *_: [])
    monkeypatch.setattr(benchmark, "table", lambda rows: "")
    benchmark.main(["--quick", "--device", "cpu"])
    reason = f"higher: skipped, fails with torch {torch.__version__}: AttributeError: no such hook"
    assert reason in capsys.readouterr().out


def test_a_library_with_another_gradient_is_not_measured(monkeypatch):
    monkeypatch.setattr(benchmark, "tiny_gradient", lambda library: torch.ones(3) * (1.0 if library is None else 1.1))
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: object())
    assert "gradient is off by 1.0e-01" in benchmark.problem_of("higher")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--speed"], "unrecognized arguments: --speed"),
        (["--dims", "4"], "invalid choice: 4"),
        (["--rounds", "0"], "found '0', wanted a whole number from 1"),
        (["--size-2d", "64", "60"], "--size-2d: found 64 60, wanted multiples of 8 from 16"),
        (["--json", "/dev/null/rows.json"], "--json: output folder /dev/null cannot be written"),
    ],
)
def test_mistakes_are_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        benchmark.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
