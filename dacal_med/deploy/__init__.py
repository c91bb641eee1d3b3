# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From a trained model to a clinical site: the export, what runs there, and the report on its results."""
