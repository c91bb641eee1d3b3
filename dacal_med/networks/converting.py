# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether a network runs as itself or is being written down for another runtime."""

from __future__ import annotations

import torch


def is_converting() -> bool:
    """Return whether a trace or a graph is being recorded, which must not decide by the size of its example."""
    return bool(torch.jit.is_tracing() or torch.compiler.is_exporting())  # type: ignore[attr-defined, no-untyped-call]
