# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The method in plain PyTorch, for any number of spatial axes."""
