# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""DACS: learning from mixes of source and target images."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from dacal_med.core.mixing import ClassMask, MaskGenerator, complementary_mixes
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import LossTerm, pseudo_batch
from dacal_med.errors import InputError


@dataclass
class DACS:
    """Domain adaptation via cross-domain mixed sampling (Tranheden et al., WACV 2021, arXiv 2007.08702).

    The student learns from source images and from target images onto which part of a source image is pasted. With
    ``complement`` it also learns from the complementary mix, which shows the other part of both images (the
    complementary domain mixing of DA-Cal, arXiv 2602.20860, in our reading).

    Args:
        mask_generator: which part of the source image is pasted; by default half of the classes present (ClassMix).
        complement: what supervises the target part of the complementary mix: ``"hard"`` the teacher's hard
            pseudo-labels, ``"same"`` the labeller's, ``"none"`` leaves the complementary mix out, as in the paper.
        mix_weight: factor of each mixed term.

    Raises:
        InputError: for another value of ``complement``.
    """

    mask_generator: MaskGenerator = field(default_factory=ClassMask)
    complement: str = "none"
    mix_weight: float = 1.0
    uses_target: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.complement not in ("none", "hard", "same"):
            raise InputError(f"host#complement: found {self.complement!r}, wanted one of 'none', 'hard', 'same'")

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the source term and, in self-training, one or both mixes."""
        terms = [LossTerm("source", batch.source, truth=True)]
        if mask is None or pseudo is None or hard is None:
            return terms
        mix_a, mix_b = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, pseudo))
        terms.append(LossTerm("mix", mix_a, self.mix_weight))
        if self.complement == "same":
            terms.append(LossTerm("complement", mix_b, self.mix_weight))
        elif self.complement == "hard":
            _, mix_b = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, hard))
            terms.append(LossTerm("complement", mix_b, self.mix_weight))
        return terms
