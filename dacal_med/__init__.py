# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""dacal_med: calibrated cross-domain adaptation for segmentation, on MONAI."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "bundle",
    "core",
    "data",
    "engines",
    "handlers",
    "io",
    "networks",
    "preparation",
    "reporting",
    "transforms",
)


def __getattr__(name: str) -> ModuleType:
    # Bundle configurations can only say `import dacal_med`; rooms load when first named, so that `core` stays light.
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
