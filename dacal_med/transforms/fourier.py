# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Give an image the low-frequency amplitudes of a random reference and keep its phases.

Fourier domain adaptation, FDA (Yang and Soatto, CVPR 2020, arXiv 2004.05498), in any number of axes; blending the
amplitudes instead of swapping them follows Xu et al., CVPR 2021 (arXiv 2105.11120).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from monai.config import KeysCollection

from dacal_med.core.tensors import INTERPOLATIONS
from dacal_med.transforms.appearance import (
    RandAppearance,
    RandAppearanced,
    References,
    as_range,
    pick_reference,
    require_references,
)


class RandFourierAmplitudeMix(RandAppearance):
    """Mix the low-frequency amplitudes of a random reference into an image.

    Args:
        references: training images in the same normalised range, as items with "image" or as arrays ``(ch, *spatial)``.
            Never images kept for evaluation.
        prob: how often the image is changed.
        beta: half width of the low-frequency window as a share of each axis, from 0 (the mean alone) to 0.5 (all
            frequencies); a number or a range to draw from.
        blend: share of the reference in the amplitudes, a number or a range to draw from.

    Raises:
        ValueError: there is no reference, an argument is out of range, or a reference has other channels or axes.
    """

    def __init__(
        self,
        references: References,
        prob: float = 0.5,
        beta: float | Sequence[float] = (0.01, 0.1),
        blend: float | Sequence[float] = (0.0, 1.0),
    ) -> None:
        super().__init__(prob)
        require_references(references)
        self.references = references
        self.beta = as_range("beta", beta, 0.0, 0.5)
        self.blend = as_range("blend", blend, 0.0, 1.0)
        self._index, self._width, self._share = 0, 0.0, 0.0

    def _draw(self) -> None:
        self._index = int(self.R.randint(len(self.references)))
        self._width = float(self.R.uniform(*self.beta))
        self._share = float(self.R.uniform(*self.blend))

    def _change(self, image: torch.Tensor) -> torch.Tensor:
        reference = pick_reference(self.references, self._index).to(image.device)
        if reference.shape[0] != image.shape[0] or reference.ndim != image.ndim:
            raise ValueError(
                f"reference of shape {tuple(reference.shape)}; wanted channels and axes as in {tuple(image.shape)}."
            )
        shape = image.shape[1:]
        if reference.shape[1:] != shape:
            mode = INTERPOLATIONS[len(shape)]
            reference = F.interpolate(reference[None], size=shape, mode=mode, align_corners=False)[0]
        axes = tuple(range(1, image.ndim))
        spectrum = torch.fft.rfftn(image, dim=axes)
        wanted = torch.fft.rfftn(reference, dim=axes)
        low = torch.ones(spectrum.shape[1:], dtype=torch.bool, device=image.device)
        for axis, size in enumerate(shape):
            frequencies = torch.fft.rfftfreq if axis == len(shape) - 1 else torch.fft.fftfreq
            near = frequencies(size, device=image.device).abs() <= self._width
            low &= near.reshape([-1 if other == axis else 1 for other in range(len(shape))])
        amplitude = torch.lerp(spectrum.abs(), wanted.abs(), low * self._share)
        mixed: torch.Tensor = torch.fft.irfftn(torch.polar(amplitude, spectrum.angle()), s=tuple(shape), dim=axes)
        return mixed


class RandFourierAmplitudeMixd(RandAppearanced):
    """Dictionary form of :class:`RandFourierAmplitudeMix`, whose arguments it takes; all keys share one reference."""

    def __init__(
        self,
        keys: KeysCollection,
        references: References,
        prob: float = 0.5,
        beta: float | Sequence[float] = (0.01, 0.1),
        blend: float | Sequence[float] = (0.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandFourierAmplitudeMix(references, prob, beta, blend), allow_missing_keys)
