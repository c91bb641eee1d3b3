# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""DACS: learning from mixes of source and target images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dacal_med.core.batch import LabelledBatch
from dacal_med.core.mixing import ClassMask, MaskGenerator, complementary_mixes
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts.base import LossTerm, pseudo_batch
from dacal_med.engines.hosts.strong import colour_jitter, gaussian_blur
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
        jitter_strength: of the colour jitter of mixed images, see :func:`colour_jitter`; 0 for none. For colour
            pictures in [0, 1]; DAFormer has 0.2.
        jitter_probability: of an image to be jittered; the published code's ``p = 0.2`` is the share left alone.
        blur_probability: of a mixed image to be blurred; DAFormer has 0.5.
        blur_sigma: bounds of the Gaussian blur's standard deviation in voxels.

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
        shares = (self.jitter_strength, self.jitter_probability, self.blur_probability)
        sigma = tuple(self.blur_sigma)
        if not all(0.0 <= share <= 1.0 for share in shares) or len(sigma) != 2 or not 0.0 < sigma[0] <= sigma[1]:
            raise InputError(
                f"host: found jitter_strength={self.jitter_strength}, jitter_probability={self.jitter_probability}, "
                f"blur_probability={self.blur_probability}, blur_sigma={list(sigma)}; wanted three numbers in [0, 1] "
                f"and two above 0, the lower first"
            )

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the source term and, in self-training, one or both mixes."""
        channels = batch.source.image.shape[1]
        if self.jitter_strength > 0.0 and channels != 3:
            raise InputError(
                f"host#jitter_strength: found {self.jitter_strength} for images of {channels} channel(s), wanted 0: "
                f"only red, green and blue have a hue and a saturation"
            )
        terms = [LossTerm("source", batch.source, truth=True)]
        if mask is None or pseudo is None or hard is None:
            return terms
        mix_a, mix_b = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, pseudo))
        terms.append(LossTerm("mix", self._seen(mix_a), self.mix_weight))
        if self.complement == "same":
            terms.append(LossTerm("complement", self._seen(mix_b), self.mix_weight))
        elif self.complement == "hard":
            _, mix_b = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, hard))
            terms.append(LossTerm("complement", self._seen(mix_b), self.mix_weight))
        return terms

    def _seen(self, mix: LabelledBatch) -> LabelledBatch:
        """Return a mix as the student sees it; the look-ahead of the bi-level step sees it as it is."""
        image = mix.image
        # Nothing is drawn where nothing is to be done: runs without are as they were.
        if self.jitter_strength > 0.0:
            chosen = torch.rand(len(image)) < self.jitter_probability
            image = torch.stack(
                [colour_jitter(x, self.jitter_strength) if c else x for x, c in zip(image, chosen, strict=True)]
            )
        if self.blur_probability > 0.0:
            chosen = torch.rand(len(image)) < self.blur_probability
            low, high = self.blur_sigma
            image = torch.stack(
                [
                    gaussian_blur(x, low + (high - low) * float(torch.rand(()))) if c else x
                    for x, c in zip(image, chosen, strict=True)
                ]
            )
        return replace(mix, image=image)
