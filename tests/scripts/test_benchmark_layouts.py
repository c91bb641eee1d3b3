# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of layouts and compilation: what it writes. No times are asserted, nothing is compiled."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from scripts import benchmark_layouts as benchmark


def test_small_run_writes_every_row(tmp_path, capsys):
    path = tmp_path / "rows.json"
    benchmark.main(["--small", "--seconds", "0.01", "--forms", "channels last", "--json", str(path)])
    content = json.loads(path.read_text())
    rows = content["rows"]
    assert [(row["case"], row["form"]) for row in rows] == [
        (case.name, form) for case in benchmark.SMALL for form in ("as it is", "channels last")
    ]
    assert all(row["step"] > 0 and row["predict"] > 0 and row["forward_mode"] for row in rows)
    assert "threads" in content["machine"]
    printed = capsys.readouterr().out
    assert "| U-Net 3D | as it is |" in printed and "| 1.00 |" in printed


@pytest.mark.parametrize("case", benchmark.SMALL, ids=lambda case: case.name)
def test_channels_last_reaches_the_network(case, monkeypatch):
    """Its weights and its input lie in memory as the row says."""
    seen = []
    build = benchmark.build

    def watched(case):
        network = build(case)
        network.register_forward_pre_hook(lambda module, args: seen.append((args[0], next(module.parameters()))))
        return network

    monkeypatch.setattr(benchmark, "build", watched)
    benchmark.measure(case, "channels last", 0.01)
    layout = torch.channels_last if len(case.size) == 2 else torch.channels_last_3d
    image, weight = seen[0]
    assert image.is_contiguous(memory_format=layout) and weight.is_contiguous(memory_format=layout)


def test_a_network_without_forward_mode_is_told(capsys):
    class NoForwardMode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            return NoForwardMode.apply(self.layer(x))

    assert not benchmark.forward_mode_works(Net(), torch.ones(1, 2))
    assert "forward mode:" in capsys.readouterr().out
    assert benchmark.forward_mode_works(nn.Linear(2, 2), torch.ones(1, 2))
