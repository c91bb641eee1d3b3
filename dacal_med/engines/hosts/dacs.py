# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""DACS: learning from mixes of source and target images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from dacal_med.core.batch import LabelledBatch
from dacal_med.core.mixing import ClassMask, MaskGenerator, complementary_mixes
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import LossTerm, pseudo_batch
from dacal_med.engines.hosts.strong import StrongAppearance
from dacal_med.io.errors import InputError


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
        jitter_strength: of the mixed images, as the three below; see :class:`StrongAppearance`.
        jitter_probability: of a mixed image to be jittered.
        blur_probability: of a mixed image to be blurred.
        blur_sigma: bounds of the blur's standard deviation in voxels.

    Raises:
        InputError: for another value of ``complement`` or a number out of range; when called, for colour jitter of
            images without three channels.
    """

    mask_generator: MaskGenerator = field(default_factory=ClassMask)
    complement: str = "none"
    mix_weight: float = 1.0
    jitter_strength: float = 0.0
    jitter_probability: float = 0.8
    blur_probability: float = 0.0
    blur_sigma: Sequence[float] = (0.15, 1.15)
    uses_target: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        if self.complement not in ("none", "hard", "same"):
            raise InputError(f"host#complement: found {self.complement!r}, wanted one of 'none', 'hard', 'same'")
        if not callable(self.mask_generator):
            raise InputError(
                f"host#mask_generator: found {self.mask_generator!r}, wanted an object such as "
                f'{{"_target_": "dacal_med.core.mixing.BoxMask"}}'
            )
        self._appearance = StrongAppearance(
            self.jitter_strength, self.jitter_probability, self.blur_probability, self.blur_sigma
        )

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the source term and, in self-training, one or both mixes."""
        self._appearance.check(batch.source.image.shape[1])
        terms = [LossTerm("source", batch.source, truth=True)]
        if mask is None or pseudo is None or hard is None:
            return terms
        mix_a, mix_b = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, pseudo))
        terms.append(LossTerm("mix", self._seen(mix_a, batch, "mix"), self.mix_weight))
        if self.complement == "hard":
            _, mix_b = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, hard))
        if self.complement != "none":
            terms.append(LossTerm("complement", self._seen(mix_b, batch, "complement"), self.mix_weight))
        return terms

    def _seen(self, mix: LabelledBatch, batch: DomainBatch, name: str) -> LabelledBatch:
        """Return a mix as the student sees it; the look-ahead of the bi-level step sees it as it is."""
        if not self._appearance.changes:
            return mix
        return replace(mix, image=self._appearance(mix.image, batch.generators(f"appearance of the {name}")))
