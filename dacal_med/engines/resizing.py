# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Prediction at the image's own size by a network that sees it smaller or larger."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from monai.inferers import Inferer, SimpleInferer
from torch import Tensor
from torch.nn import functional

from dacal_med.core.tensors import INTERPOLATIONS, plain
from dacal_med.io.errors import InputError


class ResizingInferer(Inferer):
    """Shows the network the image scaled, and scales what it gives to the size of the image.

    So labels are never resampled, and scores are those at the label's own resolution, as benchmarks define them:
    DAFormer (arXiv 2111.14887) sees images of 2048 x 1024 at half their size. Both ways are linear interpolation with
    half-pixel centres, without smoothing; at ``scale`` 0.5 a pixel becomes the mean of the 2 x 2 (2 x 2 x 2) it covers.
    What an evaluator hands over are class probabilities: their interpolation still sums to 1. (DAFormer interpolates
    logits. Where a pixel lies between two others, the more confident one then weighs more.)

    Args:
        scale: factor for every axis, or one per spatial axis, positive; sizes are rounded.
        inferer: how the network sees the scaled image; whole by default.

    Raises:
        InputError: for a factor that is not positive; when called, if the number of factors is not that of the axes.
    """

    def __init__(self, scale: float | Sequence[float], inferer: Inferer | None = None) -> None:
        super().__init__()
        self.scale = (float(scale),) if isinstance(scale, int | float) else tuple(map(float, scale))
        if not self.scale or not all(math.isfinite(factor) and factor > 0.0 for factor in self.scale):
            raise InputError(f"ResizingInferer: found scale {scale}, wanted a positive factor, or one per axis")
        self.inferer = SimpleInferer() if inferer is None else inferer

    def size(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the size at which the network sees an image of ``shape``, at least 1 along each axis.

        Raises:
            InputError: if the number of factors is not that of the axes.
        """
        factors = self.scale * len(shape) if len(self.scale) == 1 else self.scale
        if len(factors) != len(shape):
            raise InputError(
                f"ResizingInferer: found {len(factors)} factors for {len(shape)} axes, wanted 1 or as many"
            )
        return tuple(max(1, int(n * factor + 0.5)) for n, factor in zip(shape, factors, strict=True))

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Predict.

        Args:
            inputs: ``(B, channels, *spatial)``.
            network: maps ``(B, channels, *window)`` to ``(B, C, *window)``, e.g. class probabilities.
            args: passed on to the inferer.
            kwargs: passed on to the inferer.

        Returns:
            ``(B, C, *spatial)``.
        """
        image = plain(inputs)
        size = tuple(image.shape[2:])
        smaller = self.size(size)
        result = self.inferer(_resized(image, smaller), network, *args, **kwargs)
        assert isinstance(result, Tensor)
        return _resized(plain(result), size)


def _resized(values: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(values.shape[2:]) == size:
        return values
    return functional.interpolate(values, size=size, mode=INTERPOLATIONS[len(size)], align_corners=False)
