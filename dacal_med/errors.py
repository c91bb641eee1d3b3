# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The error a user sees when something they gave is wrong; the clinical site's code, which stands alone, has it too."""

from __future__ import annotations

from dacal_med.site.errors import InputError

__all__ = ["InputError"]
