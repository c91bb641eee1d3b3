# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``configs/inference.json`` of an exported folder, made from the bundle's own so that preprocessing stays the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from dacal_med.io.errors import InputError

# MONAI puts the folder of the configuration on the path before it runs, behind the working directory, which may be
# another export: its own comes first.
_ROOT = (
    "$next((os.path.abspath(p) for p in [*sys.path[1:], '.'] "
    "if os.path.isfile(os.path.join(p, 'configs', 'metadata.json'))), '.')"
)


def site_inference_config(bundle_folder: str | Path, task: Mapping[str, Any]) -> dict[str, Any]:
    """Derive the configuration that a site runs.

    Network, preprocessing, inferer and postprocessing stay as the bundle has them; what training decided (classes,
    spacing, window) is written out, and what runs is :class:`dacal_med.deploy.runtime.run.SiteInference`.

    Args:
        bundle_folder: the bundle.
        task: what training decided, as it lies beside the weights (``models/model.json``).

    Returns:
        The configuration, ready for JSON.

    Raises:
        InputError: the bundle has no readable ``configs/inference.json``.
    """
    path = Path(bundle_folder) / "configs" / "inference.json"
    try:
        own = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); wanted a bundle's configuration") from error
    return as_site_config(own, task)


def as_site_config(inference: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a bundle's inference configuration into that of a site.

    Args:
        inference: the bundle's, with ``bundle_root``, ``model_file``, ``network``, ``preprocessing`` and ``inferer``.
        task: what training decided; may be empty where the configuration has it written out.

    Returns:
        The configuration, ready for JSON.
    """
    config = {
        key: deepcopy(value) for key, value in inference.items() if key not in ("task_file", "task", "check_paths")
    }
    if task:
        config["task"] = dict(task)
    config.update(
        bundle_root=_ROOT,
        model_file="$os.path.join(@bundle_root, 'models', 'model.pt')",
        output_dir="predictions",
        dataset_dir="",
        force=False,
        identify=False,
        dicom_seg="auto",
        site={
            "_target_": "dacal_med.deploy.runtime.run.SiteInference",
            "bundle_root": "@bundle_root",
            "dataset_dir": "@dataset_dir",
            "output_dir": "@output_dir",
            "model_file": "@model_file",
            "network": "@network",
            "preprocessing": "@preprocessing",
            "inferer": "@inferer",
            "spatial_dims": "@spatial_dims",
            "in_channels": "@in_channels",
            "device": "@device",
            "force": "@force",
            "identify": "@identify",
            "dicom_seg": "@dicom_seg",
        },
        run=["$@site.main()"],
    )
    return config
