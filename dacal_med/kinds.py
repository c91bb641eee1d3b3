# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What kind of number a value from a file, a configuration or a command line is; true and false are none."""

from __future__ import annotations

import sys
from typing import Any


def is_whole(value: Any, least: int | None = None) -> bool:
    """Return whether a value is a whole number, at least ``least`` if given."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_number(value: Any, finite: bool = True) -> bool:
    """Return whether a value is a number; NaN and what a float cannot hold count only without ``finite``."""
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and (not finite or abs(value) <= sys.float_info.max)
