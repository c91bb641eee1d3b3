# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures and tables made from statistics; nothing here runs a network."""
