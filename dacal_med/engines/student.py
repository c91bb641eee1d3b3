# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What one term costs the student: one forward pass, and every loss that comes of it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from monai.inferers import Inferer
from torch import Tensor, nn

from dacal_med.engines.hosts import LossTerm
from dacal_med.engines.hrda import HasAuxiliaryOutputs, in_window

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
    """
    batch = term.batch
    with ExitStack() as stack:
        extra = None if term.extra is None else stack.enter_context(term.extra.watching(network))
        parts = stack.enter_context(network.auxiliary_outputs()) if isinstance(network, HasAuxiliaryOutputs) else []
        logits = inferer(batch.image, network)
        assert isinstance(logits, Tensor)
        loss = loss_function(logits.float(), batch.targets, batch.weights)
        total = (1.0 - sum(part.weight for part in parts)) * loss
        for part in parts:
            targets, weights = in_window(batch.targets, part.window), in_window(batch.weights, part.window)
            total = total + part.weight * loss_function(part.logits.float(), targets, weights)
        losses = {term.name: term.weight * total}
        if term.extra is not None and extra is not None:
            losses[term.extra.name] = extra()
    return losses
