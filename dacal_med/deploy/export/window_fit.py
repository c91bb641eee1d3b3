# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
r"""Temperature and vector scaling of a network whose windows are averaged.

Inference averages the probabilities of overlapping windows, and an average is less confident than its parts. A
temperature fitted to single windows, or to the average as if it were one prediction, is therefore not the one that
makes the result right. Here the negative log-likelihood is that of the average,

.. math:: -\log \frac{\sum_w a_w \, softmax(weight \cdot z_w + bias)_{truth}}{\sum_w a_w},

with the importance :math:`a_w` that inference gives a voxel in window :math:`w`, over voxels drawn once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

from dacal_med.comparison.calibrators import TEMPERATURES, TemperatureScaling, VectorScaling


@dataclass(frozen=True)
class WindowSample:
    """Voxels of one image with what each window that covers them says.

    Attributes:
        logits: ``(M, C)``, a row for each voxel and window.
        importance: ``(M,)``, what inference weighs the window with at that voxel.
        voxel: ``(M,)`` which of the voxels.
        labels: ``(N,)`` true classes of the voxels.
    """

    logits: Tensor
    importance: Tensor
    voxel: Tensor
    labels: Tensor


def joined(samples: Sequence[WindowSample]) -> WindowSample:
    """Return the voxels of several images as one sample, float64."""
    starts = np.cumsum([0, *(len(sample.labels) for sample in samples)])
    return WindowSample(
        logits=torch.cat([sample.logits for sample in samples]).double(),
        importance=torch.cat([sample.importance for sample in samples]).double(),
        voxel=torch.cat([sample.voxel + int(start) for sample, start in zip(samples, starts, strict=False)]),
        labels=torch.cat([sample.labels for sample in samples]),
    )


def averaged_nll(sample: WindowSample, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the mean negative log-likelihood of the averaged windows.

    Args:
        sample: float64.
        weight: ``(C,)`` or one number.
        bias: the same.
    """
    truth = sample.labels[sample.voxel]
    of_truth = (sample.logits * weight + bias).softmax(dim=1).gather(1, truth[:, None])[:, 0]
    zeros = torch.zeros(len(sample.labels), dtype=torch.float64)
    likelihood = zeros.index_add(0, sample.voxel, sample.importance * of_truth)
    total = zeros.index_add(0, sample.voxel, sample.importance)
    return -(likelihood / total).clamp_min(torch.finfo(torch.float32).tiny).log().mean()


def fit_temperature(samples: Sequence[WindowSample]) -> TemperatureScaling:
    """Fit the temperature, within :data:`~dacal_med.comparison.calibrators.TEMPERATURES`, of the least averaged NLL.

    Args:
        samples: one for each image.
    """
    sample = joined(samples)

    def loss(log_temperature: float) -> float:
        weight = torch.tensor(float(np.exp(-log_temperature)), dtype=torch.float64)
        return float(averaged_nll(sample, weight, torch.zeros_like(weight)))

    # The average is not convex in 1 / T; a coarse look around first keeps the search out of a lesser valley.
    low, high = np.log(TEMPERATURES)
    grid = np.linspace(low, high, 25)
    best = int(np.argmin([loss(float(value)) for value in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return TemperatureScaling(float(np.exp(found.x)))


def fit_vector(samples: Sequence[WindowSample]) -> VectorScaling:
    """Fit weights and biases by class of the least averaged NLL, starting from the best temperature.

    They scale logits, as in the paper; :class:`VectorScaling` of the comparison scales log-probabilities, which is not
    the same where weights differ.

    A class that no drawn voxel has keeps weight ``1 / T`` and bias 0 before biases are centred, as in
    :func:`dacal_med.comparison.calibrators.fit_vector`.

    Args:
        samples: one for each image.
    """
    sample = joined(samples)
    classes = sample.logits.shape[1]
    start = torch.zeros(2, classes, dtype=torch.float64)
    start[0] = 1.0 / fit_temperature(samples).temperature
    present = torch.bincount(sample.labels, minlength=classes) > 0

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(values).view(2, classes).clone().requires_grad_()
        value = averaged_nll(sample, parameters[0], parameters[1])
        (gradient,) = torch.autograd.grad(value, parameters)
        return float(value.detach()), (gradient * present).flatten().numpy()

    options = {"ftol": 1e-10, "gtol": 1e-6, "maxiter": 200}
    found = optimize.minimize(loss, start.flatten().numpy(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = found.x.reshape(2, classes)
    return VectorScaling(tuple(weight.tolist()), tuple((bias - bias.mean()).tolist()))
