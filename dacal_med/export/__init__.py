# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What leaves for a clinical site."""
