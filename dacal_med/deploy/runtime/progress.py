# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a person at the console sees of a running case."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

_SECONDS = 5.0  # between lines where the output is no terminal


class ProgressLine:
    """One line a case: rewritten on a terminal, repeated now and then in a file.

    Args:
        name: of the case.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.began = time.monotonic()
        self.shown = float("-inf")
        self.terminal = sys.stdout.isatty()

    def show(self, what: str, share: float) -> None:
        """Tell what is being done and the share of it that is done."""
        now = time.monotonic()
        pause = 0.2 if self.terminal else _SECONDS
        if now - self.shown < pause:
            return
        self.shown = now
        text = f"{self.name}: {what} {share:4.0%}"
        print(f"\r{text:<70}" if self.terminal else text, end="" if self.terminal else "\n", flush=True)

    def end(self, result: str, warnings: Sequence[str]) -> None:
        """Tell how it went."""
        text = f"{self.name}: {result}, {time.monotonic() - self.began:.1f} s"
        print(f"\r{text:<70}" if self.terminal else text)
        for warning in warnings:
            print(f"  warning: {warning}")
        sys.stdout.flush()
