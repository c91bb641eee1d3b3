# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What is run from a checkout and not installed: preparation of public datasets, and benchmarks."""
