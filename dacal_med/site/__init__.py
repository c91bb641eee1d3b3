# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a clinical site runs: it imports nothing else of this project."""
