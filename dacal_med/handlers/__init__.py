# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What watches an engine: reports, plots, checkpoints, progress."""

from __future__ import annotations

from dacal_med.handlers.adaptation import AdaptationReport
from dacal_med.handlers.checkpoint import ResumableCheckpoint
from dacal_med.handlers.claim import claim
from dacal_med.handlers.evaluation import EvaluationReport
from dacal_med.handlers.progress import Progress
from dacal_med.handlers.tensorboard import TensorBoardCalibration
from dacal_med.handlers.weights import load_weights, save_weights

__all__ = [
    "AdaptationReport",
    "EvaluationReport",
    "Progress",
    "ResumableCheckpoint",
    "TensorBoardCalibration",
    "claim",
    "load_weights",
    "save_weights",
]
