# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What tests of handlers share."""

from __future__ import annotations

import pytest

from tests.processes import without_figures


@pytest.fixture
def no_figures(monkeypatch) -> None:
    """Draw none, where a test looks at none."""
    without_figures(monkeypatch)
