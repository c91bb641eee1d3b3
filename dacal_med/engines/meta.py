# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Learning the temperature: the update of the Meta Temperature Network.

Known from DA-Cal (Li et al., arXiv 2602.20860): a network gives a temperature per voxel and is trained by bi-level
optimisation with complementary mixes. Our reading: the outer loss is the cross-entropy on a complementary mix whose
source part was held out, so that it can be neither memorised nor sharpened for free, and a prior keeps ``log T`` near
0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from dacal_med.core.batch import LabelledBatch, in_parts
from dacal_med.core.bilevel import BilevelStep
from dacal_med.core.mixing import complementary_mixes
from dacal_med.core.pseudo_labels import LearnedTemperature, PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import pseudo_batch
from dacal_med.engines.objectives import ComplementaryTruth, MetaObjective
from dacal_med.engines.parallel import any_rank, average, average_gradients, world_size
from dacal_med.io.errors import InputError

BALANCES = ("none", "class")


@dataclass(frozen=True)
class MetaReport:
    """What one meta-step did, for logs.

    Attributes:
        inner_loss: loss on mix A before the look-ahead step, mean over ranks.
        outer_loss: loss of the meta objective at the look-ahead weights, mean over ranks.
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
        start: first iteration of self-training with a meta-step and learned labels, counted from 0; the labels are
            hard until then, which adapts the target faster while the teacher is poor.
        prior: weight of ``(log T - log centre)^2``.
        prior_temperature: the centre that the network's output multiplies, at the start. 1 believes the teacher;
            :class:`~dacal_med.engines.feedback.TemperatureFeedback` moves it.
        balance: ``"class"`` gives each class that the teacher predicts its own scale and the same weight, so that the
            background does not drown the foreground; ``"none"`` has one scale for all voxels.

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
        balance: str = "none",
    ) -> None:
        if not isinstance(labeller, LearnedTemperature):
            raise InputError(f"meta#labeller: found {type(labeller).__name__}, wanted LearnedTemperature")
        if every < 1 or start < 0 or prior < 0 or isinstance(prior_temperature, str) or not prior_temperature > 0:
            raise InputError(
                f"meta: found every={every}, start={start}, prior={prior}, prior_temperature={prior_temperature!r}; "
                f"wanted every >= 1, start >= 0, prior >= 0, prior_temperature > 0"
            )
        if balance not in BALANCES:
            raise InputError(f"meta#balance: found {balance!r}, wanted one of {list(BALANCES)}")
        self.balance = balance
        self.labeller = labeller
        self.optimizer = optimizer
        self.step = step
        self.objective = ComplementaryTruth() if objective is None else objective
        self.every = every
        self.start = start
        self.prior = prior
        self.prior_temperature = prior_temperature
        labeller.log_centre.fill_(math.log(prior_temperature))

    @property
    def needs_held_out(self) -> bool:
        """Whether the outer loss uses held-out source images."""
        return self.objective.needs_held_out

    def started(self, iteration: int) -> bool:
        """Return whether iteration ``iteration`` of self-training, counted from 0, uses the learned temperature."""
        return iteration >= self.start

    def due(self, iteration: int) -> bool:
        """Return whether iteration ``iteration`` of self-training, counted from 0, takes a meta-step."""
        return self.started(iteration) and (iteration - self.start) % self.every == 0

    def update(
        self,
        batch: DomainBatch,
        mask: Tensor,
        logits: Tensor,
        hard: PseudoLabels,
        parts: int = 1,
    ) -> MetaReport:
        """Take one meta-step.

        Args:
            batch: the iteration's data.
            mask: ``(B, 1, *spatial)`` bool, the source part of mix A.
            logits: ``(B, C, *spatial)`` teacher logits on the target.
            hard: the teacher's hard pseudo-labels, for objectives that use them.
            parts: micro-batches; one step is taken, from the look-ahead and the outer loss of all of them.

        Returns:
            Losses and the norm of the meta-gradient.
        """
        # Graphs of temperatures and labels are made after the student's passes, whose own graphs need the memory.
        with torch.no_grad():
            log_temperature = self.labeller.temperature(logits, batch.target_image).log()
            mix_a, weights = self._mix(log_temperature, batch, mask, logits)
        targets = mix_a.targets.requires_grad_(True)
        pieces = zip(batch.in_parts(parts), in_parts(mask, parts), hard.in_parts(parts), strict=True)
        outer_losses = [self.objective.outer_loss(*piece) for piece in pieces]
        if parts == 1:
            result = self.step(mix_a, outer_losses[0], [targets])
        else:
            result = self.step.in_parts(mix_a.in_parts(parts), outer_losses, [targets])
        pushes = result.gradients[0]
        assert pushes is not None  # the meta-gradient is a sum over all soft labels
        leaf = log_temperature.requires_grad_(True)
        (gradient,) = torch.autograd.grad(self._mix(leaf, batch, mask, logits)[0].targets, leaf, pushes)
        supervised = (~mask & (weights > 0)).to(gradient.dtype)
        groups = self._groups(logits)
        # Sum of squares and count of the voxels with a push, and count of all voxels: by group, over ranks.
        totals = torch.stack(
            [
                _by_group(values, groups, logits.shape[1])
                for values in (gradient.square(), supervised, torch.ones_like(supervised))
            ]
        )
        losses = torch.stack([result.inner_loss, result.outer_loss]).to(totals)
        average([totals, losses])
        squares, pushed, voxels = totals
        finite = not any_rank(not bool(torch.isfinite(squares).all() and torch.isfinite(losses).all()))
        if finite and bool((squares > 0).any()):
            present = (voxels > 0).sum()
            scale = torch.where(squares > 0, (squares * pushed).rsqrt(), 0.0) / (squares > 0).sum()
            log_temperature = self.labeller.temperature(logits, batch.target_image).log()
            pull = self.prior * (log_temperature - self.labeller.log_centre).square() / (voxels * present)[groups]
            self.optimizer.zero_grad(set_to_none=True)
            ((gradient * scale[groups] * log_temperature).sum() + pull.sum()).backward()
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            average_gradients(parameters)
            self.optimizer.step()
        # Each rank's gradient is that of a mean over its own voxels.
        norm = float((squares.sum() / world_size()).sqrt())
        return MetaReport(float(losses[0]), float(losses[1]), norm, finite)

    def _mix(
        self, log_temperature: Tensor, batch: DomainBatch, mask: Tensor, logits: Tensor
    ) -> tuple[LabelledBatch, Tensor]:
        """Return mix A with the labels that temperatures give, and the weights of the target's voxels."""
        pseudo = self.labeller.from_temperature(logits, log_temperature.exp())
        mix_a, _ = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, pseudo))
        return mix_a, pseudo.weights

    def _groups(self, logits: Tensor) -> Tensor:
        """Return the group ``(B, 1, *spatial)`` whose voxels share one scale."""
        classes = logits.argmax(dim=1, keepdim=True)
        return classes if self.balance == "class" else torch.zeros_like(classes)


def _by_group(values: Tensor, groups: Tensor, count: int) -> Tensor:
    """Sum ``values`` over the voxels of each group, ``(count,)``."""
    return torch.zeros(count, dtype=values.dtype, device=values.device).index_add_(
        0, groups.flatten(), values.flatten()
    )
