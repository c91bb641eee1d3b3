# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Give an image the grey-value distribution of a random reference, by scikit-image's histogram matching.

Histogram matching as in Gonzalez and Woods, Digital Image Processing; Nyúl et al., IEEE TMI 19 (2000) 143 for MR.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.config import KeysCollection
from skimage.exposure import match_histograms

from dacal_med.transforms.appearance import (
    RandAppearance,
    RandAppearanced,
    References,
    as_range,
    pick_reference,
    require_references,
)

_REFERENCE_VALUES = 1 << 18  # a distribution needs no more, and sorting a whole large volume takes seconds


class RandHistogramMatch(RandAppearance):
    """Match the histogram of each channel to that of a random reference.

    Args:
        references: training images in the same normalised range, as items with "image" or as arrays ``(ch, *spatial)``.
            Never images kept for evaluation.
        prob: how often the image is changed.
        blend: share of the matched image in the result, a number or a range to draw from.
        above: match only values above this, in image and reference, and leave the others; for images whose dark
            background takes shares that differ between the domains. None for all values.

    Raises:
        ValueError: there is no reference, an argument is out of range, or a reference has other channels.
    """

    def __init__(
        self,
        references: References,
        prob: float = 0.5,
        blend: float | Sequence[float] = (0.5, 1.0),
        above: float | None = None,
    ) -> None:
        super().__init__(prob)
        require_references(references)
        self.references = references
        self.blend = as_range("blend", blend, 0.0, 1.0)
        self.above = above
        self._index, self._share = 0, 0.0

    def _draw(self) -> None:
        self._index = int(self.R.randint(len(self.references)))
        self._share = float(self.R.uniform(*self.blend))

    def _change(self, image: torch.Tensor) -> torch.Tensor:
        reference = pick_reference(self.references, self._index)
        if reference.shape[0] != image.shape[0]:
            raise ValueError(f"reference with {reference.shape[0]} channel(s); wanted {image.shape[0]}.")
        matched = image.detach().cpu().numpy().copy()
        for channel, wanted in zip(matched, reference.detach().cpu().numpy(), strict=True):
            low = -np.inf if self.above is None else self.above
            inside, values = channel > low, wanted[wanted > low]
            if not inside.any() or not values.size:
                continue
            values = values[:: -(-values.size // _REFERENCE_VALUES)]
            channel[inside] = match_histograms(channel[inside], values)
        return torch.lerp(image, torch.as_tensor(matched, device=image.device), self._share)


class RandHistogramMatchd(RandAppearanced):
    """Dictionary form of :class:`RandHistogramMatch`, whose arguments it takes; all keys share one reference."""

    def __init__(
        self,
        keys: KeysCollection,
        references: References,
        prob: float = 0.5,
        blend: float | Sequence[float] = (0.5, 1.0),
        above: float | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, RandHistogramMatch(references, prob, blend, above), allow_missing_keys)
