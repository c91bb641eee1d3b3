# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Compiling where machine code can be kept and where it cannot; the sums are tested in test_voxel_sums.py."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from dacal_med.core import compiled as module

LIMITS = 1.0001, 1e-3


def halved(x):
    return x / 2


def test_machine_code_is_kept_between_processes():
    assert module._add.stats.cache_path


def test_nothing_is_kept_where_no_folder_is_writable(monkeypatch):
    """numba says so when a function that it should keep is decorated, not when it compiles."""
    asked = []

    def njit(**options):
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'halved': no locator available for file 'compiled.py'")
        return numba.njit(**options)

    monkeypatch.setattr(module, "njit", njit)
    assert module._compiled(halved)(3) == 1.5
    assert [options.get("cache", False) for options in asked] == [True, False]


def test_no_voxel_gives_no_sums():
    empty = np.empty(0, np.float32), 0, 3, np.empty(0, np.int32), np.empty(0, np.bool_)
    sums, doubtful = module.compiled_sums(*empty, 0, 1e-38, LIMITS, 30, 414)
    assert not doubtful
    assert [array.shape for array in sums][:3] == [(3, 3), (4, 2, 30), (4, 30)]
    assert not any(array.any() for array in sums)


@pytest.mark.parametrize("background", [0, -1])
def test_one_voxel_by_hand(background):
    p = np.array([0.75, 0.25], np.float32)
    one = p, 1, 2, np.zeros(1, np.int32), np.zeros(1, np.bool_)
    sums, doubtful = module.compiled_sums(*one, background, 1e-38, LIMITS, 30, 414)
    confusion, count, total, *_, voxels, nll, brier = sums
    assert not doubtful
    bits = 0 if background == 0 else 2
    assert confusion.tolist() == [[1, 0], [0, 0]]
    assert np.argwhere(count).tolist() == [[bits, 1, 22]] and total[bits, 22] == 0.75
    assert voxels[bits].tolist() == [1, 0]
    assert nll[bits, 0] == -np.log(0.75) and brier[bits, 0] == 0.125
