# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Learning the temperature: the meta objective and the update of the Meta Temperature Network.

Known from DA-Cal (Li et al., arXiv 2602.20860): a network gives a temperature per voxel and is trained by bi-level
optimisation with complementary mixes. Our reading: the outer loss is the cross-entropy on a complementary mix whose
source part was held out, so that it can be neither memorised nor sharpened for free, and a prior keeps ``log T`` near
0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.bilevel import BilevelStep
from dacal_med.core.mixing import complementary_mixes
from dacal_med.core.pseudo_labels import LearnedTemperature, PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import pseudo_batch
from dacal_med.engines.parallel import average, average_gradients
from dacal_med.errors import InputError

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

    Raises:
        InputError: for another value of either.
    """

    source: str = "held_out"
    target: str = "none"

    def __post_init__(self) -> None:
        if self.source not in ("held_out", "training"):
            raise InputError(f"meta_objective#source: found {self.source!r}, wanted 'held_out' or 'training'")
        if self.target not in ("none", "hard"):
            raise InputError(f"meta_objective#target: found {self.target!r}, wanted 'none' or 'hard'")

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
        target = pseudo_batch(batch.target_image, hard)
        if self.target == "none":
            target = LabelledBatch(target.image, target.targets, torch.zeros_like(target.weights))
        _, mix_b = complementary_mixes(mask, truth, target)
        return lambda forward: soft_cross_entropy(forward(mix_b.image), mix_b.targets, mix_b.weights)


@dataclass(frozen=True)
class MetaReport:
    """What one meta-step did, for logs.

    Attributes:
        inner_loss: loss on mix A before the look-ahead step.
        outer_loss: loss of the meta objective at the look-ahead weights.
        gradient_norm: norm of the exact ``dL_out / d log T`` over voxels, before normalisation.
        finite: whether the step was taken; a non-finite gradient is skipped.
    """

    inner_loss: float
    outer_loss: float
    gradient_norm: float
    finite: bool


class TemperatureLearner:
    """Updates the Meta Temperature Network by the exact meta-gradient, voxel by voxel.

    The bi-level step gives ``G = dL_out / d log T`` per voxel. Its scale carries the student's learning rate, the
    number of voxels and the network's size; dividing by its root mean square over the target voxels of mix A removes
    them, so that ``prior`` means the same for every task: at ``log T`` the pull back is ``2 * prior * log T`` against a
    typical single-voxel push of 1. What is left is a positive factor: the direction stays the exact meta-gradient's.

    Args:
        labeller: the pseudo-labeller whose network is trained.
        optimizer: over the parameters of ``labeller.network``.
        step: the look-ahead on the student.
        objective: outer data and loss.
        every: take the meta-step every so many iterations.
        start: first iteration of self-training with a meta-step, counted from 0.
        prior: weight of ``(log T - log prior_temperature)^2``.
        prior_temperature: where the prior is centred; 1 believes the teacher.

    Raises:
        InputError: if ``labeller`` learns no temperature or a number is out of range.
    """

    def __init__(
        self,
        labeller: LearnedTemperature,
        optimizer: Optimizer,
        step: BilevelStep,
        objective: MetaObjective | None = None,
        every: int = 4,
        start: int = 0,
        prior: float = 0.1,
        prior_temperature: float = 1.0,
    ) -> None:
        if not isinstance(labeller, LearnedTemperature):
            raise InputError(f"meta#labeller: found {type(labeller).__name__}, wanted LearnedTemperature")
        if every < 1 or start < 0 or prior < 0 or prior_temperature <= 0:
            raise InputError(
                f"meta: found every={every}, start={start}, prior={prior}, prior_temperature={prior_temperature}; "
                f"wanted every >= 1, start >= 0, prior >= 0, prior_temperature > 0"
            )
        self.labeller = labeller
        self.optimizer = optimizer
        self.step = step
        self.objective = ComplementaryTruth() if objective is None else objective
        self.every = every
        self.start = start
        self.prior = prior
        self.log_prior_temperature = float(torch.tensor(prior_temperature).log())

    def due(self, iteration: int) -> bool:
        """Return whether iteration ``iteration`` of self-training, counted from 0, takes a meta-step."""
        return iteration >= self.start and (iteration - self.start) % self.every == 0

    def update(self, batch: DomainBatch, mask: Tensor, logits: Tensor, hard: PseudoLabels) -> MetaReport:
        """Take one meta-step.

        Args:
            batch: the iteration's data.
            mask: ``(B, 1, *spatial)`` bool, the source part of mix A.
            logits: ``(B, C, *spatial)`` teacher logits on the target.
            hard: the teacher's hard pseudo-labels, for objectives that use them.

        Returns:
            Losses and the norm of the meta-gradient.
        """
        log_temperature = self.labeller.temperature(logits, batch.target_image).log()
        leaf = log_temperature.detach().requires_grad_(True)
        pseudo = self.labeller.from_temperature(logits, leaf.exp())
        mix_a, _ = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, pseudo))
        result = self.step(mix_a, self.objective.outer_loss(batch, mask, hard), [leaf])
        gradient = result.gradients[0]
        assert gradient is not None  # the soft labels depend on every temperature
        supervised = ~mask & (pseudo.weights > 0)
        squares = gradient.square().sum()
        voxels = supervised.sum().to(squares.dtype)
        totals = torch.stack([squares, voxels])
        average([totals])
        finite = bool(torch.isfinite(totals[0])) and bool(torch.isfinite(result.outer_loss))
        if finite and float(totals[0]) > 0.0:
            scale = (totals[0] / totals[1]).sqrt() * totals[1]
            push = (gradient / scale * log_temperature).sum()
            pull = self.prior * (log_temperature - self.log_prior_temperature).square().mean()
            self.optimizer.zero_grad(set_to_none=True)
            (push + pull).backward()
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            average_gradients(parameters)
            self.optimizer.step()
        return MetaReport(float(result.inner_loss), float(result.outer_loss), float(squares.sqrt()), finite)
