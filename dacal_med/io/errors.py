# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The error a user sees when something they gave is wrong."""

from __future__ import annotations


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a configuration key, an override.

    The message alone must be enough to act on: it names the file or key, what was found and what was wanted.
    """
