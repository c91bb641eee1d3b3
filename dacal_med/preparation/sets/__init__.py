# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One file per data set, or per family of data sets that share classes."""
