# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Feedback on the temperature: is the teacher, as it will be deployed, as sure as it is right?

Self-training is a loop: softer pseudo-labels make a less confident student, which becomes the teacher. The
meta-gradient sees how labels act on the next outer loss, not where the loop settles. What closes it here is our own:
after each epoch the teacher predicts labelled source images that it never learned from, in their own appearance and by
the inference that the site runs; while it is more confident than it is right, the temperature that the network's
output multiplies is raised, while it is less confident lowered (an integral controller). Known is the measurement:
mean confidence minus accuracy, the sum of the signed gaps of a reliability diagram (Guo et al., ICML 2017, arXiv
1706.04599).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from dacal_med.core.pseudo_labels import LearnedTemperature
from dacal_med.core.tensors import plain
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.engines.parallel import own_rank, total, world_size
from dacal_med.io.errors import InputError

_MOST = 0.5  # a single measurement moves log T by no more, whatever the gain: the gap is linear nearby only
_TINY = 1e-7


def confidence_gap(probabilities: Tensor, labels: Tensor, ignore_index: int | None = 255) -> Tensor:
    """Return what the calibration of a prediction as a whole derives from, as sums that add up over images.

    Args:
        probabilities: ``(B, C, *spatial)``.
        labels: ``(B, 1, *spatial)`` true classes or ``ignore_index``.
        ignore_index: label that is left out; ``None`` for none.

    Returns:
        ``(3,)`` float64: the sum over voxels of confidence minus correctness; the sum of the derivative of the
        confidence by the inverse temperature at 1, ``p_max (log p_max - Σ p log p)``; the number of voxels.
    """
    p, y = plain(probabilities).clamp_min(_TINY), plain(labels).long()
    confidence, predicted = p.max(dim=1, keepdim=True)
    log_p = p.log()
    slope = confidence * (log_p.amax(dim=1, keepdim=True) - (p * log_p).sum(dim=1, keepdim=True))
    counts = torch.ones_like(y, dtype=torch.bool) if ignore_index is None else y != ignore_index
    sums = (confidence - (predicted == y).to(p.dtype), slope, torch.ones_like(p[:, :1]))
    return torch.stack([(values * counts).sum(dtype=torch.float64) for values in sums])


class TemperatureFeedback:
    """Moves the temperature that the network's output multiplies until the teacher is calibrated on held-out source.

    ``log T`` of the centre grows by ``gain * gap / slope`` after each epoch of self-training, which is the gain times
    the logarithm of the temperature that would close the gap for the teacher itself, to first order. It is saved with
    the labeller; the Meta Temperature Network learns the deviations of single voxels from it.

    Args:
        dataset: held-out source cases as the network is to see them when it is used: ``image`` ``(channels,
            *spatial)``, ``label`` ``(1, *spatial)``.
        inferer: how the deployed network sees a whole image.
        gain: above 0. Labels act on the teacher with the delay of its moving average, and on its confidence on the
            source in part only: 2 closed the gap in three to five epochs of 50 iterations.
        lowest: the centre's lower bound, in ``(0, 1]``.
        highest: its upper bound, from 1. With 1 (default) the feedback takes back softness and never adds any: a
            teacher that is less sure than right on the source, where it is at its best, has been softened too much,
            whereas one that is surer than right there may only have learned too few source cases by heart.
        max_cases: cases measured after an epoch; of more, the same evenly spaced ones each time.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        dataset: Sequence[Mapping[str, Any]],
        inferer: Inferer | None = None,
        gain: float = 2.0,
        lowest: float = 0.25,
        highest: float = 1.0,
        max_cases: int = 32,
    ) -> None:
        if not gain > 0.0 or not 0.0 < lowest <= 1.0 <= highest or max_cases < 1:
            raise InputError(
                f"feedback: found gain={gain}, lowest={lowest}, highest={highest}, max_cases={max_cases}; "
                f"wanted gain > 0, 0 < lowest <= 1 <= highest, max_cases >= 1"
            )
        self.dataset = dataset
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.gain = gain
        self.lowest, self.highest = lowest, highest
        count = min(len(dataset), max_cases)
        self.cases = [index * len(dataset) // count for index in range(count)]

    def adjust(
        self,
        labeller: LearnedTemperature,
        network: nn.Module,
        device: torch.device | str | None,
        ignore_index: int | None = 255,
    ) -> float:
        """Measure the teacher and move the labeller's centre.

        Returns:
            The gap that was measured, confidence minus accuracy in ``[-1, 1]``; a gap that is not finite moves nothing.
        """
        gap, slope = self.measure(network, device, ignore_index)
        if math.isfinite(gap) and slope > 0.0:
            step = max(-_MOST, min(_MOST, self.gain * gap / slope))
            labeller.log_centre.add_(step).clamp_(math.log(self.lowest), math.log(self.highest))
        return gap

    def measure(
        self, network: nn.Module, device: torch.device | str | None, ignore_index: int | None = 255
    ) -> tuple[float, float]:
        """Return the network's mean confidence minus accuracy on the cases, and its slope by the inverse temperature.

        In a distributed run each rank measures its share of the cases, and all return the same.
        """
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        with eval_mode(network):
            for index in self.cases[own_rank() :: world_size()]:
                case = self.dataset[index]
                image = plain(case["image"]).unsqueeze(0).to(device).float()
                label = plain(case["label"]).unsqueeze(0).to(device)
                sums += confidence_gap(predict_probabilities(self.inferer, network, image), label, ignore_index)
        gap, slope, voxels = total(sums).tolist()
        return (gap / voxels, slope / voxels) if voxels else (math.nan, math.nan)
