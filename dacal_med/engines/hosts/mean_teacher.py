# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Mean teacher: consistency on target images as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dacal_med.core.mixing import MaskGenerator, NoMask
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import LossTerm, pseudo_batch
from dacal_med.io.errors import InputError


@dataclass
class MeanTeacher:
    """Mean teacher (Tarvainen & Valpola, NeurIPS 2017, arXiv 1703.01780) for segmentation, without mixing.

    The student sees a target image with noise and is to predict what the teacher predicts without it, as French et al.
    (ICLR 2018, arXiv 1706.05208) and Perone et al. (NeuroImage 2019, arXiv 1811.06042) do across domains. The loss is
    the engine's, cross-entropy with the labeller's labels; the labeller's threshold on the confidence takes the place
    of the ramp-up, as in French et al., whose 0.968 it is.

    Args:
        consistency_weight: factor of the consistency term, at least 0.
        noise: standard deviation of the Gaussian noise on the student's image, in units of that image's own standard
            deviation; 0 for none. The paper: 0.15 on standardised images.

    Raises:
        InputError: if a number is negative.
    """

    consistency_weight: float = 1.0
    noise: float = 0.15
    uses_target: bool = field(default=True, init=False)
    mask_generator: MaskGenerator = field(default_factory=NoMask, init=False)

    def __post_init__(self) -> None:
        if not self.consistency_weight >= 0.0 or not self.noise >= 0.0:
            raise InputError(
                f"host: found consistency_weight={self.consistency_weight}, noise={self.noise}, wanted both at least 0"
            )

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the source term and, in self-training, the consistency term."""
        terms = [LossTerm("source", batch.source, truth=True)]
        if pseudo is not None:
            image = self._noisy(batch.target_image, batch.generators("noise"))
            terms.append(LossTerm("consistency", pseudo_batch(image, pseudo), self.consistency_weight))
        return terms

    def _noisy(self, image: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        if self.noise == 0.0:
            return image
        scale = image.flatten(1).std(dim=1).view(-1, *[1] * (image.dim() - 1))
        # Drawn on the CPU, so that every device sees the same noise.
        noise = torch.stack([torch.randn(image.shape[1:], generator=generator) for generator in generators])
        return image + self.noise * scale * noise.to(image)
