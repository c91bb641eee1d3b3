# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""No adaptation."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dacal_med.core.mixing import MaskGenerator, NoMask
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import LossTerm


@dataclass
class SourceOnly:
    """No adaptation: the student learns from source images alone, the lower bound of every comparison."""

    uses_target: bool = field(default=False, init=False)
    mask_generator: MaskGenerator = field(default_factory=NoMask, init=False)

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the source term."""
        return [LossTerm("source", batch.source, truth=True)]
