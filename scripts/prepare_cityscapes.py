# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med prepare cityscapes_city2city`` as a script."""

from __future__ import annotations

import sys

from dacal_med.cli import main

if __name__ == "__main__":
    sys.exit(main(["prepare", "cityscapes_city2city", *sys.argv[1:]]))
