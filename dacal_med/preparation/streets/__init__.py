# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Rendered streets that stand in for the driving data sets until these are at hand."""
