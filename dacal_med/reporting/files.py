# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Files that are either whole or not there; the clinical site's code, which stands alone, has the functions."""

from __future__ import annotations

from dacal_med.site.files import check_writable, given_path, replacing, write_bytes, write_json

__all__ = ["check_writable", "given_path", "replacing", "write_bytes", "write_json"]
