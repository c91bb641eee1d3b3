# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Kinds of numbers: what JSON and Python write alike and mean differently."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dacal_med.kinds import is_number, is_whole


@pytest.mark.parametrize("value", [0, -3, 10**300])
def test_whole_numbers_are_numbers(value):
    assert is_whole(value)
    assert is_number(value)


@pytest.mark.parametrize("value", [True, False, None, "3", [3], np.int64(3), torch.tensor(3), 1j])
def test_what_is_no_number(value):
    assert not is_whole(value)
    assert not is_number(value, finite=False)


def test_fractions():
    assert is_number(0.5) and not is_whole(0.5)
    assert not is_whole(3.0)
    beyond = (math.nan, math.inf, -math.inf, 10**400, -(10**400))
    assert not any(is_number(value) for value in beyond)
    assert all(is_number(value, finite=False) for value in beyond)


def test_least():
    assert [is_whole(value, 1) for value in (0, 1, 2)] == [False, True, True]
