# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Meta objectives: the outer data and loss that judge the soft pseudo-labels.

The outer loss is a proper score, so that its minimum over temperatures is a student that is calibrated on the outer
data. How well that carries over to the target depends on how much the outer data resembles it, hence the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.mixing import complementary_mixes
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import pseudo_batch
from dacal_med.io.errors import InputError

Forward = Callable[[Tensor], Tensor]


class MetaObjective(Protocol):
    """The outer data and loss: given the forward pass at the look-ahead weights, how good were the soft labels?"""

    @property
    def needs_held_out(self) -> bool:
        """Whether the loss uses held-out source cases."""
        ...

    def outer_loss(self, batch: DomainBatch, mask: Tensor, hard: PseudoLabels) -> Callable[[Forward], Tensor]:
        """Return the function whose value the soft labels are to lower."""
        ...


@dataclass
class ComplementaryTruth:
    """Cross-entropy on the complementary mix, supervised by truth in its source part.

    Args:
        source: ``"held_out"`` shows source images that the student never trains on (default); ``"training"`` the ones
            it trains on, whose labels it memorises, so that sharpening always pays and ``T`` falls to its lower bound.
        target: ``"none"`` leaves the target part unsupervised (default); ``"hard"`` supervises it with the teacher's
            hard pseudo-labels, the host's own supervision.
        mixed: whether the source part is seen in the complementary mix (default) or as a whole image of its own, as
            the network sees images when it is used; ``target`` must then be ``"none"``.

    Raises:
        InputError: for another value of either.
    """

    source: str = "held_out"
    target: str = "none"
    mixed: bool = True

    def __post_init__(self) -> None:
        if self.source not in ("held_out", "training"):
            raise InputError(f"meta_objective#source: found {self.source!r}, wanted 'held_out' or 'training'")
        if self.target not in ("none", "hard"):
            raise InputError(f"meta_objective#target: found {self.target!r}, wanted 'none' or 'hard'")
        if not self.mixed and self.target != "none":
            raise InputError("meta_objective#target: found 'hard' without mixing, wanted 'none': no target is seen")

    @property
    def needs_held_out(self) -> bool:
        """Whether the source part is held out."""
        return self.source == "held_out"

    def outer_loss(self, batch: DomainBatch, mask: Tensor, hard: PseudoLabels) -> Callable[[Forward], Tensor]:
        """Return the loss on the complement of ``mask`` ``(B, 1, *spatial)``."""
        truth = batch.source
        if self.needs_held_out:
            assert batch.held_out is not None  # the engine has checked
            truth = batch.held_out
        if not self.mixed:
            return lambda forward: soft_cross_entropy(forward(truth.image), truth.targets, truth.weights)
        target = pseudo_batch(batch.target_image, hard)
        if self.target == "none":
            target = LabelledBatch(target.image, target.targets, torch.zeros_like(target.weights))
        _, mix_b = complementary_mixes(mask, truth, target)
        return lambda forward: soft_cross_entropy(forward(mix_b.image), mix_b.targets, mix_b.weights)


@dataclass
class MixedTarget:
    """Cross-entropy on mix-ups of target images, supervised by the hard pseudo-labels of the dominant one.

    PseudoCal (Hu et al., ICML 2024, arXiv 2307.07489) fits a temperature after training on such synthetic samples:
    where the network is unsure of a target image, mixing another into it changes its prediction, and the sample counts
    as an error. Here they judge the look-ahead student; no label is needed.

    Args:
        mix: share of the dominant image, in ``(0.5, 1)``.

    Raises:
        InputError: for a share out of range.
    """

    mix: float = 0.65

    def __post_init__(self) -> None:
        if not 0.5 < self.mix < 1.0:
            raise InputError(f"meta_objective#mix: found {self.mix}, wanted a number between 0.5 and 1")

    @property
    def needs_held_out(self) -> bool:
        """It uses target images alone."""
        return False

    def outer_loss(self, batch: DomainBatch, mask: Tensor, hard: PseudoLabels) -> Callable[[Forward], Tensor]:
        """Return the loss on each target image with the batch's next one mixed in.

        Raises:
            InputError: for a batch of one image, which has no other to mix with.
        """
        image = batch.target_image
        if image.shape[0] < 2:
            raise InputError("meta_objective MixedTarget: found batch_size 1, wanted at least 2 images to mix")
        mixed = self.mix * image + (1.0 - self.mix) * image.roll(1, dims=0)
        return lambda forward: soft_cross_entropy(forward(mixed), hard.probabilities, hard.weights)


@dataclass
class WeightedObjectives:
    """A weighted sum of objectives.

    Args:
        objectives: the parts, at least one.
        weights: one each, positive.

    Raises:
        InputError: if the numbers do not fit.
    """

    objectives: Sequence[MetaObjective]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        if not self.objectives or len(self.objectives) != len(self.weights) or min(self.weights) <= 0:
            raise InputError(
                f"meta_objective: found {len(self.objectives)} objectives and weights {list(self.weights)}, "
                f"wanted one positive weight for each of at least one objective"
            )

    @property
    def needs_held_out(self) -> bool:
        """Whether any part does."""
        return any(objective.needs_held_out for objective in self.objectives)

    def outer_loss(self, batch: DomainBatch, mask: Tensor, hard: PseudoLabels) -> Callable[[Forward], Tensor]:
        """Return the sum of the parts' losses."""
        losses = [objective.outer_loss(batch, mask, hard) for objective in self.objectives]

        def total(forward: Forward) -> Tensor:
            return torch.stack([w * loss(forward) for w, loss in zip(self.weights, losses, strict=True)]).sum()

        return total
