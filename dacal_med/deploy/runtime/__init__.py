# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What runs at a clinical site, copied into every exported folder as ``dacal_site``.

It imports nothing of the training code: torch, MONAI, numpy and the libraries that read images are enough.
"""
