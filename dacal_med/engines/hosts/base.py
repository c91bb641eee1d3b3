# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a host gives the engine: supervised terms. What every host shares."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from dacal_med.core.batch import LabelledBatch
from dacal_med.core.mixing import MaskGenerator
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.io.errors import InputError


class ExtraLoss(Protocol):
    """A loss of what the student computes on its way to the logits of a term, such as the distance of its features."""

    @property
    def name(self) -> str:
        """Shown in logs as ``loss_<name>``."""
        ...

    def watching(self, network: nn.Module) -> AbstractContextManager[Callable[[], Tensor]]:
        """Watch the forward pass of ``network`` inside the context; what it gives returns the weighted loss (0-d)."""
        ...


@dataclass(frozen=True)
class LossTerm:
    """One supervised term of the student's loss.

    Attributes:
        name: shown in logs as ``loss_<name>``.
        batch: what the student sees and what supervises it.
        weight: factor of the term in the sum.
        truth: whether every label is true, none a pseudo-label.
        extra: a further loss from the same forward pass, logged under its own name.
    """

    name: str
    batch: LabelledBatch
    weight: float = 1.0
    truth: bool = False
    extra: ExtraLoss | None = None


@runtime_checkable
class Host(Protocol):
    """What the engine asks of a self-training method."""

    @property
    def uses_target(self) -> bool:
        """Whether pseudo-labels are needed at all."""
        ...

    @property
    def mask_generator(self) -> MaskGenerator:
        """Which part of a source image goes onto a target image; ``NoMask`` for hosts that do not mix.

        The bi-level step looks ahead on the same mix: with an empty mask that is the target image alone, and the outer
        loss sees whole held-out source images.
        """
        ...

    def terms(
        self, batch: DomainBatch, mask: Tensor | None, pseudo: PseudoLabels | None, hard: PseudoLabels | None
    ) -> list[LossTerm]:
        """Return the supervised terms of an iteration.

        Args:
            batch: the iteration's data.
            mask: ``(B, 1, *spatial)`` bool from :attr:`mask_generator`; ``None`` before self-training, as the others.
            pseudo: the labeller's pseudo-labels of the target images.
            hard: the teacher's hard pseudo-labels of the same.

        Returns:
            The terms, source first. Random numbers come from ``batch.generators``, a generator for each sample, so that
            ranks and micro-batches draw what one large batch does.
        """
        ...


class OnHost:
    """A host that adds to the terms of another, its field ``base``, and mixes as that does.

    Raises:
        InputError: if ``base`` is no host.
    """

    base: Host

    def __post_init__(self) -> None:
        if not isinstance(self.base, Host):
            raise InputError(f"host#base: found {type(self.base).__name__}, wanted a host")

    @property
    def mask_generator(self) -> MaskGenerator:
        """That of the host below."""
        return self.base.mask_generator


def pseudo_batch(image: Tensor, pseudo: PseudoLabels) -> LabelledBatch:
    """Pair target images ``(B, channels, *spatial)`` with their pseudo-labels."""
    return LabelledBatch(image, pseudo.probabilities, pseudo.weights)
