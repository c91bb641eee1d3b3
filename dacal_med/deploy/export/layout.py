# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What an exported folder is made of."""

from __future__ import annotations

CONFIGS, DOCS, MODELS, WHEELS = "configs", "docs", "models", "wheels"
WEIGHTS = "model.pt"
FORMATS = ("model.pt", "model.ts", "model.pt2", "model.onnx")
"""In ``models/``: weights alone, TorchScript, torch.export and ONNX."""

METADATA, INFERENCE, LOGGING, TRUST = "metadata.json", "inference.json", "logging.conf", "trust.json"
DEPLOY = "deploy.json"
"""Network, pre- and postprocessing with MONAI targets only; ``inference.json`` inside the TorchScript file."""

INPUT, OUTPUT = "image", "pred"
"""Names of the ONNX graph's input and output."""

CALIBRATION = "calibration.json"
"""In ``docs/``: what a site's labelled cases said, and what was fitted."""
