# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What labels say about a case: true Dice, volume and reliability of the confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dacal_med.core.scores import ReliabilityTable
from dacal_med.deploy.report.scans import Array, Scan
from dacal_med.transforms.labels import IGNORE_INDEX

BINS = 15


@dataclass(frozen=True)
class Measured:
    """One labelled case.

    Attributes:
        dice: true Dice by class; None where neither truth nor prediction has it.
        share: true volume as a multiple of the predicted volume, by class; None where nothing is predicted.
        reliability: of the largest probability, over all voxels with known truth.
        foreground: the same over voxels where truth or prediction is a structure.
    """

    dice: Mapping[str, float | None]
    share: Mapping[str, float | None]
    reliability: ReliabilityTable
    foreground: ReliabilityTable


def measure(scan: Scan, channels: Mapping[str, int], background: int | None) -> Measured | None:
    """Compare a case with its label.

    Args:
        scan: the case.
        channels: number of each class in segmentation and label, by name.
        background: class that is no structure; None where every class is one.

    Returns:
        What the label says; None without a label.
    """
    if scan.label is None:
        return None
    known = scan.label != IGNORE_INDEX
    truth, prediction, confidence = scan.label[known], scan.segmentation[known], scan.confidence[known]
    dice: dict[str, float | None] = {}
    share: dict[str, float | None] = {}
    for name, k in channels.items():
        true, predicted = int((truth == k).sum()), int((prediction == k).sum())
        hit = int(((truth == k) & (prediction == k)).sum())
        dice[name] = 2 * hit / (true + predicted) if true + predicted else None
        share[name] = true / predicted if predicted else None
    structure = np.ones(truth.shape, bool) if background is None else (truth != background) | (prediction != background)
    correct = truth == prediction
    return Measured(
        dice,
        share,
        reliability_of(confidence, correct),
        reliability_of(confidence[structure], correct[structure]),
    )


def reliability_of(confidence: Array, correct: Any, bins: int = BINS) -> ReliabilityTable:
    """Return the reliability table of confidences in bins ``(lo, hi]`` of equal width.

    Args:
        confidence: ``(voxels,)``.
        correct: bool ``(voxels,)``.
        bins: number of bins.
    """
    # In single precision, like the confidences, so that a confidence on an edge stays in its bin.
    edges = np.linspace(0.0, 1.0, bins + 1, dtype=np.float32)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins).astype(np.float64)
    hits = np.bincount(index, weights=correct, minlength=bins)
    total = np.bincount(index, weights=confidence.astype(np.float64), minlength=bins)
    return _table(count, hits, total)


def pooled(tables: Sequence[ReliabilityTable]) -> ReliabilityTable:
    """Return the table of all voxels of several cases."""
    count = np.sum([t.count.numpy() for t in tables], axis=0)
    hits = np.sum([np.nan_to_num((t.count * t.accuracy).numpy()) for t in tables], axis=0)
    total = np.sum([np.nan_to_num((t.count * t.confidence).numpy()) for t in tables], axis=0)
    return _table(count, hits, total)


def _table(count: Any, hits: Any, total: Any) -> ReliabilityTable:
    edges = torch.linspace(0.0, 1.0, len(count) + 1, dtype=torch.float64)
    filled = count > 0
    accuracy, mean = (np.divide(x, count, out=np.full(len(count), np.nan), where=filled) for x in (hits, total))
    return ReliabilityTable(
        edges[:-1], edges[1:], torch.from_numpy(count), torch.from_numpy(accuracy), torch.from_numpy(mean)
    )
