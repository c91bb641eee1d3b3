# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med``."""

from __future__ import annotations

import sys

from dacal_med.explanations import explained


def run() -> int:
    """Run a command; where the packages of the extra ``train`` are not installed, as at a clinical site, say so."""
    try:
        from dacal_med.cli import main
    except ModuleNotFoundError as error:
        message = explained(error)
        if message is None:
            raise
        print(f"dacal_med: {message}", file=sys.stderr)
        return 2
    return main()


if __name__ == "__main__":
    sys.exit(run())
