# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``configs/inference.json`` of an exported folder."""

from __future__ import annotations

from typing import Any

from dacal_med.export.deployed import Deployed

_ROOT = "$next((p for p in ['.', *sys.path] if os.path.isfile(os.path.join(p, 'configs', 'metadata.json'))), '.')"


def site_inference(deployed: Deployed) -> dict[str, Any]:
    """Return the configuration that the site runs: the bundle's own, with what training decided written out."""
    left_out = ("task_file", "task")
    config = {key: value for key, value in deployed.inference.items() if key not in left_out}
    return {
        **config,
        "bundle_root": _ROOT,
        "model_file": "$os.path.join(@bundle_root, 'models', 'model.pt')",
        "dataset_dir": "$os.path.join(@bundle_root, 'images')",
        "network_def": deployed.config["network_def"],
    }
