# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``configs/inference.json`` of an exported folder."""

from __future__ import annotations

from typing import Any

from dacal_med.export.deployed import Deployed
from dacal_med.export.site_config import as_site_config


def site_inference(deployed: Deployed) -> dict[str, Any]:
    """Return the configuration that the site runs: the bundle's own, with what training decided written out."""
    return {**as_site_config(deployed.inference, {}), "network_def": deployed.config["network_def"]}
