# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Made-up results of runs, as files and as sums: known labels, predictions of a given quality and sharpness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dacal_med.comparison.aggregate import run_folder
from dacal_med.core.scores import summarise, summarise_cases
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.handlers.sums import save_sums

CLASSES = ("background", "liver", "spleen", "absent organ")


def labels(case: int, size: int = 16) -> Tensor:
    """Return ``(1, 1, size, size)``: background, a disc of class 1 and one of class 2, other ones in each case."""
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    label = torch.zeros(size, size, dtype=torch.long)
    label[(y - size // 3) ** 2 + (x - size // 3) ** 2 < (size // 5 + case % 3) ** 2] = 1
    label[(y - 2 * size // 3) ** 2 + (x - 2 * size // 3) ** 2 < (size // 6 + case % 2) ** 2] = 2
    return label[None, None]


def probabilities(label: Tensor, quality: float, sharpness: float, seed: int) -> Tensor:
    """Return ``(1, C, size, size)``: noise around the truth; a sharpness above 1 is overconfidence."""
    noise = torch.randn(1, 3, *label.shape[2:], generator=torch.Generator().manual_seed(seed))
    truth = functional.one_hot(label[:, 0], 3).movedim(-1, 1).float()
    logits = sharpness * (quality**2 * truth + quality * noise)
    nothing = torch.full_like(logits[:, :1], -60.0)
    return torch.cat([logits, nothing], dim=1).double().softmax(dim=1)


def sums(quality: float, sharpness: float = 1.0, seed: int = 0, cases: int = 3) -> list[SegmentationStatistics]:
    """Return the sums of each case; a logit of the truth plus noise is calibrated at sharpness 1."""
    result = []
    for case in range(cases):
        statistics = SegmentationStatistics(len(CLASSES))
        label = labels(case)
        statistics.update(probabilities(label, quality, sharpness, 1000 * seed + case), label)
        result.append(statistics)
    return result


def scores(cases: Sequence[SegmentationStatistics]) -> dict[str, Any]:
    pooled = cases[0].copy()
    for case in cases[1:]:
        pooled += case
    return {**summarise(pooled, CLASSES), **summarise_cases(cases)}


def write_run(
    folder: Path,
    method: str,
    seed: int,
    cases: Sequence[SegmentationStatistics],
    after: dict[str, Any] | None = None,
    seconds: float = 60.0,
    memory: float | None = 100.0,
    groups: Sequence[str | None] | None = None,
) -> None:
    """Write the result folder of one run; its scores are those of ``cases`` unless given."""
    place = run_folder(folder, method, seed)
    save_sums(place / "statistics.pt", cases, CLASSES, groups)
    content = {
        "before": None,
        "after": scores(cases) if after is None else after,
        "seconds": seconds,
        "peak_memory_mib": memory,
    }
    (place / "metrics.json").write_text(json.dumps(content))
