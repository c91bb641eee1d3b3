# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What runs at a clinical site: it needs torch, MONAI, numpy and the libraries that read images, no training code."""
