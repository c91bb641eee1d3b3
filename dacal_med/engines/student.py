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
from dacal_med.errors import InputError

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
        InputError: if the network has another number of classes than the targets, or another size than its image.
    """
    batch = term.batch
    with ExitStack() as stack:
        extra = None if term.extra is None else stack.enter_context(term.extra.watching(network))
        parts = stack.enter_context(network.auxiliary_outputs()) if isinstance(network, HasAuxiliaryOutputs) else []
        logits = checked_logits(inferer(batch.image, network), batch.image, batch.targets.shape[1])
        loss = loss_function(logits.float(), batch.targets, batch.weights)
        total = (1.0 - sum(part.weight for part in parts)) * loss
        for part in parts:
            targets, weights = in_window(batch.targets, part.window), in_window(batch.weights, part.window)
            total = total + part.weight * loss_function(part.logits.float(), targets, weights)
        losses = {term.name: term.weight * total}
        if term.extra is not None and extra is not None:
            losses[term.extra.name] = extra()
    return losses


def checked_logits(logits: object, image: Tensor, num_classes: int) -> Tensor:
    """Return what a network gave, if it is one channel for each class at the size of its image.

    Args:
        logits: what it gave.
        image: ``(B, channels, *spatial)``, what it saw.
        num_classes: number of classes of the data.

    Raises:
        InputError: saying what was found and wanted.
    """
    wanted = (image.shape[0], num_classes, *image.shape[2:])
    if isinstance(logits, Tensor) and tuple(logits.shape) == wanted:
        return logits
    found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    hint = ""
    if isinstance(logits, Tensor) and logits.dim() > 1 and logits.shape[1] != num_classes:
        hint = f": it has {logits.shape[1]} classes and the data has {num_classes}; see `num_classes` and `network_def`"
    raise InputError(f"network_def: found {found} for images {tuple(image.shape)}, wanted logits {wanted}{hint}")
