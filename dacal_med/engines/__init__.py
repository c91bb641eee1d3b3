# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The Ignite engines: adaptation, composed of host, pseudo-labeller and temperature learner, and evaluation."""

from __future__ import annotations

from dacal_med.core.batch import soft_cross_entropy
from dacal_med.core.regions import known_regions
from dacal_med.engines.evaluator import CalibrationEvaluator
from dacal_med.engines.feedback import TemperatureFeedback
from dacal_med.engines.hosts import DACS, DAFormer, MaskedConsistency, MeanTeacher, SourceOnly, make_host
from dacal_med.engines.labellers import make_labeller, make_temperature_learner
from dacal_med.engines.losses import dice_cross_entropy
from dacal_med.engines.meta import TemperatureLearner
from dacal_med.engines.objectives import ComplementaryTruth, MixedTarget, WeightedObjectives
from dacal_med.engines.parameter_groups import parameter_groups
from dacal_med.engines.resizing import ResizingInferer
from dacal_med.engines.schedules import warmup_polynomial
from dacal_med.engines.trainer import AdaptationTrainer

__all__ = [
    "DACS",
    "AdaptationTrainer",
    "CalibrationEvaluator",
    "ComplementaryTruth",
    "DAFormer",
    "MaskedConsistency",
    "MeanTeacher",
    "MixedTarget",
    "ResizingInferer",
    "SourceOnly",
    "TemperatureFeedback",
    "TemperatureLearner",
    "WeightedObjectives",
    "dice_cross_entropy",
    "known_regions",
    "make_host",
    "make_labeller",
    "make_temperature_learner",
    "parameter_groups",
    "soft_cross_entropy",
    "warmup_polynomial",
]
