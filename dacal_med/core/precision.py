# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Mixed precision: which type a network computes in, and what keeps small numbers from vanishing there."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Precision:
    """The type in which networks compute; parameters, losses and gradients of parameters stay as they are.

    Args:
        dtype: of autocast, e.g. ``torch.bfloat16``; ``None`` computes as the parameters are.
    """

    dtype: torch.dtype | None = None

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which a network's forward pass belongs."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, dtype=self.dtype)

    @property
    def reduced(self) -> bool:
        """Whether numbers have fewer digits than the parameters."""
        return self.dtype is not None

    @property
    def loss_scale(self) -> float:
        """What a loss is multiplied by before its gradient is taken, to be divided out of the gradient.

        float16 ends at 6e-8, where the gradients of a loss that is a mean over voxels begin; with 2^10 they fit, and
        large ones do too. The other types have float32's range.
        """
        return 1024.0 if self.dtype == torch.float16 else 1.0
