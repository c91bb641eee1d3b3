# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks, a thousand times smaller."""

from __future__ import annotations

from typing import Any

from dacal_med.networks import SegmentationNetwork, segmentation_network

CLASSES = 3
MIT = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
    "drop_path_rate": 0.3,
}
RESNET = {"depths": [1, 1, 2, 2], "hidden_sizes": [16, 16, 32, 32], "embedding_size": 8}
HEAD: dict[str, dict[str, Any]] = {
    "daformer": {"channels": 8, "dropout": 0.3},
    "segformer": {"channels": 8, "dropout": 0.3},
    "deeplabv2": {},
    "deeplabv3plus": {"channels": 8, "fine_channels": 4, "dropout": 0.3},
}
# Head and encoder as they belong together.
PAIRS = (("daformer", "mit_b0"), ("segformer", "mit_b0"), ("deeplabv2", "resnet50"), ("deeplabv3plus", "resnet50"))


def tiny(name: str = "daformer", encoder: str = "mit_b0", **options: Any) -> SegmentationNetwork:
    """A network of a few thousand parameters with all its random parts: dropout and stochastic depth."""
    settings = {
        "encoder_options": MIT if encoder.startswith("mit") else RESNET,
        "head_options": HEAD[name],
        "num_classes": CLASSES,
    }
    return segmentation_network(name, encoder, **{**settings, **options})
