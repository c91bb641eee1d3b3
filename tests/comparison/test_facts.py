# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says of the machine."""

from __future__ import annotations

import os

import torch

from dacal_med.comparison.facts import describe_machine


def test_the_machine_is_told(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.setattr(os, "getloadavg", lambda: (1.25, 0.0, 0.0), raising=False)
    told = describe_machine().split(", ")
    assert told[-5:] == ["7 cores", "threads: 3", f"torch {torch.__version__}", "device: cpu", "load 1.2"]
    assert len(told) == 6 and told[0]  # the processor first
    monkeypatch.delattr(os, "getloadavg")  # as on Windows
    assert describe_machine().endswith("device: cpu")
