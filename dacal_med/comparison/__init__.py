# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The fair comparison: methods x seeds from one configuration, post-hoc calibrators on top, tables and plots."""
