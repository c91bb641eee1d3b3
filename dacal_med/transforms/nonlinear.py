# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Random intensity curves: monotone Bezier curves, inverted or not, and curves that reorder the contrasts.

The Bezier curve is that of Models Genesis (Zhou et al., MICCAI 2019, arXiv 1908.06912). A monotone or inverted curve
keeps the neighbours of a grey value; between modalities the order itself changes, hence the piecewise-linear kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np
import torch
from monai.config import KeysCollection

from dacal_med.transforms.appearance import RandAppearance, RandAppearanced

_CURVES = ("bezier", "piecewise")
_TABLE = 1024  # intervals of the lookup table


class RandNonlinearIntensity(RandAppearance):
    """Send the values of an image in [0, 1] through a random curve from [0, 1] to [0, 1].

    Args:
        prob: how often the image is changed.
        curve: "bezier" for a monotone cubic Bezier curve between (0, 0) and (1, 1); "piecewise" for a piecewise-linear
            curve through uniformly random values, which is not monotone.
        invert_prob: how often a Bezier curve falls instead of rising; no meaning for "piecewise".
        num_control_points: knots of a piecewise curve, ends included; a number or the two ends of a range.
        keep_zero: whether exactly 0, the background of a windowed image, stays 0.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        prob: float = 0.5,
        curve: str = "bezier",
        invert_prob: float = 0.0,
        num_control_points: int | Sequence[int] = (4, 8),
        keep_zero: bool = False,
    ) -> None:
        super().__init__(prob)
        if curve not in _CURVES:
            raise ValueError(f"curve is {curve!r}; wanted one of {', '.join(_CURVES)}.")
        if not 0.0 <= invert_prob <= 1.0:
            raise ValueError(f"invert_prob is {invert_prob}; wanted a number from 0 to 1.")
        points = (num_control_points,) * 2 if isinstance(num_control_points, int) else tuple(num_control_points)
        if len(points) != 2 or not 2 <= points[0] <= points[1]:
            raise ValueError(f"num_control_points is {num_control_points}; wanted 2 or more, or an increasing pair.")
        self.curve = curve
        self.invert_prob = invert_prob
        self.num_control_points = points
        self.keep_zero = keep_zero
        self.table = np.linspace(0.0, 1.0, _TABLE + 1)

    def _draw(self) -> None:
        grid = np.linspace(0.0, 1.0, _TABLE + 1)
        if self.curve == "piecewise":
            count = int(self.R.randint(self.num_control_points[0], self.num_control_points[1] + 1))
            self.table = np.interp(grid, np.linspace(0.0, 1.0, count), self.R.uniform(0.0, 1.0, count))
            return
        # Sorted control points make both coordinates, and so the curve, monotone.
        x = np.concatenate([[0.0], np.sort(self.R.uniform(0.0, 1.0, 2)), [1.0]])
        y = np.concatenate([[0.0], np.sort(self.R.uniform(0.0, 1.0, 2)), [1.0]])
        weights = np.stack([comb(3, k) * grid**k * (1.0 - grid) ** (3 - k) for k in range(4)])
        table = np.interp(grid, x @ weights, y @ weights)
        self.table = 1.0 - table if self.R.uniform() < self.invert_prob else table

    def _change(self, image: torch.Tensor) -> torch.Tensor:
        table = torch.as_tensor(self.table, dtype=image.dtype, device=image.device)
        position = image * _TABLE
        below = position.floor().clamp(0, _TABLE - 1)
        index = below.long()
        changed = table[index] + (position - below) * (table[index + 1] - table[index])
        return torch.where(image == 0, image, changed) if self.keep_zero else changed


class RandNonlinearIntensityd(RandAppearanced):
    """Dictionary form of :class:`RandNonlinearIntensity`, whose arguments it takes; all keys share one curve."""

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.5,
        curve: str = "bezier",
        invert_prob: float = 0.0,
        num_control_points: int | Sequence[int] = (4, 8),
        keep_zero: bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        transform = RandNonlinearIntensity(prob, curve, invert_prob, num_control_points, keep_zero)
        super().__init__(keys, transform, allow_missing_keys)
