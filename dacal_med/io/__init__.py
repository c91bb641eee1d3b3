# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reading images and writing files: one reader for training, preparation, export and the clinical site."""
