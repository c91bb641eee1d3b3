# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The student's update: what each term costs, gradients over micro-batches and ranks, and steps that are skipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.optim import Optimizer

from dacal_med.core.precision import Precision
from dacal_med.core.tensors import at_least_single, seed_draws
from dacal_med.engines.hosts import LossTerm
from dacal_med.engines.parallel import any_rank
from dacal_med.engines.whole_batch import MicroBatches, needs_sums
from dacal_med.io.errors import InputError
from dacal_med.networks.hrda import HasAuxiliaryOutputs, in_window

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From logits, targets ``(B, C, *spatial)`` and weights ``(B, 1, *spatial)`` to a scalar."""


def term_losses(network: nn.Module, inferer: Inferer, term: LossTerm, loss_function: Loss) -> dict[str, Tensor]:
    """Return the weighted losses of a term by name: its own and, if it has one, its extra loss.

    The term's own loss is that of the network's logits; auxiliary outputs take their share of it, each supervised by
    the same labels in its window.

    Args:
        network: the student, in training mode.
        inferer: how it sees the batch.
        term: what it sees and what supervises it.
        loss_function: of logits, targets and weights.

    Raises:
        InputError: if the network does not take the image, has another number of classes than the targets, or another
            size than its image.
    """
    batch = term.batch
    with ExitStack() as stack:
        extra = None if term.extra is None else stack.enter_context(term.extra.watching(network))
        parts = stack.enter_context(network.auxiliary_outputs()) if isinstance(network, HasAuxiliaryOutputs) else []
        logits = predicted_logits(network, inferer, batch.image, batch.targets.shape[1])
        loss = loss_function(at_least_single(logits), batch.targets, batch.weights)
        total = (1.0 - sum(part.weight for part in parts)) * loss
        for part in parts:
            targets, weights = in_window(batch.targets, part.window), in_window(batch.weights, part.window)
            total = total + part.weight * loss_function(at_least_single(part.logits), targets, weights)
        losses = {term.name: term.weight * total}
        if term.extra is not None and extra is not None:
            losses[term.extra.name] = extra()
    return losses


def predicted_logits(network: nn.Module, inferer: Inferer, image: Tensor, num_classes: int) -> Tensor:
    """Return what a network gives, if it is one channel for each class at the size of its image.

    Args:
        network: that predicts.
        inferer: how it sees the batch.
        image: ``(B, channels, *spatial)``.
        num_classes: number of classes of the data.

    Raises:
        InputError: if the network does not take the image, or gives something else; saying what was found and wanted.
    """
    try:
        logits: object = inferer(image, network)
    except (torch.OutOfMemoryError, torch.AcceleratorError, InputError):
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        # What a network cannot take is the configuration's mistake.
        problem = " ".join(str(error).split())[:200]
        raise InputError(
            f"network_def, roi_size: {type(network).__name__} does not take images of shape {tuple(image.shape)} "
            f"(B, channels, *spatial); wanted axes that it can halve as often as it does, and channels that it has: "
            f"{problem}"
        ) from error
    wanted = (image.shape[0], num_classes, *image.shape[2:])
    if isinstance(logits, Tensor) and tuple(logits.shape) == wanted:
        return logits
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    hint = ""
    if isinstance(logits, Tensor) and logits.dim() > 1 and logits.shape[1] != num_classes:
        hint = f": it has {logits.shape[1]} classes and the data has {num_classes}; see `num_classes` and `network_def`"
    raise InputError(f"network_def: found {found} for images {tuple(image.shape)}, wanted logits {wanted}{hint}")


@dataclass(frozen=True)
class MicroBatch:
    """One part of an iteration's batch.

    Attributes:
        terms: makes its supervised terms; called when its turn has come, so that those of one part exist at a time.
        seed: of what the network draws (dropout).
    """

    terms: Callable[[], Sequence[LossTerm]]
    seed: int


class StudentUpdate:
    """One update of the student from the mean gradient of micro-batches and ranks.

    Args:
        network: the student.
        optimizer: over its parameters.
        inferer: how it sees a batch.
        loss_function: of terms with pseudo-labels.
        truth_loss_function: of terms with true labels only.
        precision: in which the network computes.
        scaler: of the loss, for float16.
        max_gradient_norm: clip to this norm; ``None`` does not clip.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        inferer: Inferer,
        loss_function: Loss,
        truth_loss_function: Loss,
        precision: Precision,
        scaler: torch.amp.GradScaler | None = None,
        max_gradient_norm: float | None = None,
    ) -> None:
        self.network = network
        self.optimizer = optimizer
        self.inferer = inferer
        self.loss_function = loss_function
        self.truth_loss_function = truth_loss_function
        self.precision = precision
        self.scaler = scaler
        self.max_gradient_norm = max_gradient_norm
        self._buffers: list[Tensor] = []

    def backward(self, parts: Sequence[MicroBatch]) -> dict[str, float]:
        """Set the gradients to those of the mean loss of the parts, scaled by the scaler if there is one.

        Returns:
            The losses by name, means over the parts.
        """
        self.optimizer.zero_grad(set_to_none=True)
        # An image that is not finite reaches batch-norm statistics before its loss is known.
        self._buffers = _copies(self.network)
        sums = self._recorded(parts) if len(parts) > 1 else {}
        losses: dict[str, float] = {}
        for part in parts:
            seed_draws(part.seed)
            for index, term in enumerate(part.terms()):
                with sums[index].replaying() if index in sums else nullcontext():
                    values = self._losses(term, part.seed + index)
                loss = torch.stack(list(values.values())).sum()
                loss = loss if len(parts) == 1 else loss / len(parts)
                # One backward per term: the graphs of two terms never exist together.
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
                for name, value in values.items():
                    losses[name] = losses.get(name, 0.0) + float(value.detach()) / len(parts)
        return losses

    def step(self, losses: Mapping[str, float]) -> str:
        """Take the step, on all ranks or on none; where it is not taken, buffers go back to before :meth:`backward`.

        Args:
            losses: of this rank, of which one that is not finite prevents the step.

        Returns:
            ``"taken"``; ``"not_finite"`` if a loss or gradient of any rank is not; ``"overflow"`` if a gradient is too
            large for float16 at the present scale, which the scaler then lowers.
        """
        outcome = self._take(losses)
        if outcome != "taken":
            _set_back(self.network, self._buffers)
        self._buffers = []
        return outcome

    def _take(self, losses: Mapping[str, float]) -> str:
        finite = not any_rank(not all(math.isfinite(value) for value in losses.values()))
        if finite and self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
        fits = finite and not any_rank(not bool(torch.isfinite(norm)))
        if fits and self.max_gradient_norm is not None:
            nn.utils.clip_grads_with_norm_(list(self.network.parameters()), self.max_gradient_norm, norm)
        if not finite:
            return "not_finite"
        if self.scaler is None:
            if not fits:
                return "not_finite"
            self.optimizer.step()
            return "taken"
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)  # which skips what does not fit
        self.scaler.update()
        return "taken" if fits else "overflow" if scale > 1.0 else "not_finite"

    def _losses(self, term: LossTerm, seed: int) -> dict[str, Tensor]:
        seed_draws(seed)
        function = self.truth_loss_function if term.truth else self.loss_function
        with self.precision.autocast(term.batch.image.device):
            return term_losses(self.network, self.inferer, term, function)

    @torch.no_grad()
    def _recorded(self, parts: Sequence[MicroBatch]) -> dict[int, MicroBatches]:
        """Collect what losses need to know of all parts, by term."""
        sums: dict[int, MicroBatches] = {}
        with _unmoved_buffers(self.network):
            for part in parts:
                seed_draws(part.seed)
                for index, term in enumerate(part.terms()):
                    function = self.truth_loss_function if term.truth else self.loss_function
                    if needs_sums(function) or needs_sums(term.extra):
                        with sums.setdefault(index, MicroBatches(len(parts))).recording():
                            self._losses(term, part.seed + index)
        return sums


@contextmanager
def _unmoved_buffers(network: nn.Module) -> Iterator[None]:
    """Set buffers (batch-norm statistics) back at the end."""
    before = _copies(network)
    try:
        yield
    finally:
        _set_back(network, before)


def _copies(network: nn.Module) -> list[Tensor]:
    return [buffer.detach().clone() for buffer in network.buffers()]


@torch.no_grad()
def _set_back(network: nn.Module, before: Sequence[Tensor]) -> None:
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)
