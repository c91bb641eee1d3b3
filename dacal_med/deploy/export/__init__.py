# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What leaves for a clinical site: the deployed network in four formats, and the folder around it."""
