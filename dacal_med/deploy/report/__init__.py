# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The report on a site's predictions: one HTML file that needs nothing else."""
