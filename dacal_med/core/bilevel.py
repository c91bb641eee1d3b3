# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
r"""The bi-level step: a look-ahead step of the student and the exact gradient of what comes after it.

That soft pseudo-labels are tied to the student's supervision by bi-level optimisation is DA-Cal's (arXiv 2602.20860);
look-ahead steps are MAML's and DARTS's (Liu et al., ICLR 2019). What follows is our derivation. With the inner loss

.. math:: L_{in}(\theta, \phi) = -\tfrac1N \sum w \sum_c \hat y_c(\phi) \log p_c(\theta),
          \qquad \theta^+ = \theta - \alpha P \nabla_\theta L_{in}

linear in the soft labels and ``P`` the optimizer's diagonal preconditioner, held constant,

.. math:: \frac{dL_{out}(\theta^+)}{d\phi} = \frac1N \nabla_\phi \sum w \sum_c \hat y_c(\phi)\, u_c, \qquad
          u = \partial_\epsilon \log p(\theta + \epsilon\, \alpha P \nabla L_{out}(\theta^+)) |_{\epsilon=0}.

``u`` is one forward-mode derivative of the student, so that no second-order graph exists.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.differentiation import (
    NoForwardModeError,
    call,
    finite_difference,
    forward_mode,
    group_of,
    preconditioner,
    preserved_random_state,
    random_state,
    set_random_state,
)
from dacal_med.core.precision import Precision

Forward = Callable[[Tensor], Tensor]
OuterLoss = Callable[[Forward], Tensor]
METHODS = ("auto", "forward", "difference", "double_backward")


@dataclass(frozen=True)
class MetaGradient:
    """The result of a bi-level step.

    Attributes:
        gradients: of the outer loss (and penalty), one per meta parameter, ``None`` where it does not depend on it.
        inner_loss: before the look-ahead step, 0-d.
        outer_loss: after it, 0-d.
        norm: of all gradients together, 0-d.
        method: ``"forward"``, ``"difference"`` or ``"double_backward"``, as used.
    """

    gradients: tuple[Tensor | None, ...]
    inner_loss: Tensor
    outer_loss: Tensor
    norm: Tensor
    method: str


class BilevelStep:
    """Computes how soft labels should change so that the student's next step lowers an outer loss.

    The network's parameters, gradients, buffers and the global random state are left as they were; dropout repeats the
    inner pass's draws in the derivative.

    Args:
        network: the student.
        optimizer: the student's; SGD, Adam or AdamW.
        step_size: of the look-ahead step; ``None`` takes each parameter group's learning rate.
        method: ``"forward"``; ``"difference"`` for networks with layers that lack forward-mode derivatives; ``"auto"``
            changes from the first to the second by itself, with one warning; ``"double_backward"`` for comparison.
        parameters: which parameters take the look-ahead step, by name; the others stay.
        difference_norm: length of the finite difference's step in parameter space.
        average: replaces tensors in place by their mean over ranks; applied to the inner and the outer gradient. The
            returned gradients are this rank's own: averaging those of shared parameters is left to the caller, since
            gradients of a rank's own temperatures must not be averaged.

    Attributes:
        precision: in which the network computes. Gradients are those of the parameters, unscaled, before anything is
            derived from them; finite differences, which digits would drown, are taken in full precision.

    Raises:
        ValueError: for an unknown method, or if no parameter takes the step.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        *,
        step_size: float | None = None,
        method: str = "auto",
        parameters: str | Callable[[str], bool] = "all",
        difference_norm: float = 1e-3,
        average: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method: found {method!r}, wanted one of {list(METHODS)}")
        if isinstance(parameters, str) and parameters != "all":
            raise ValueError(f"parameters: found {parameters!r}, wanted 'all' or a function of the parameter's name")
        chosen: Callable[[str], bool] = (lambda _: True) if isinstance(parameters, str) else parameters
        known = group_of(optimizer)
        self.parameters = {
            name: p for name, p in network.named_parameters() if p.requires_grad and chosen(name) and id(p) in known
        }
        if not self.parameters:
            names = [name for name, _ in network.named_parameters()]
            raise ValueError(
                "parameters: none takes the look-ahead step; wanted at least one trainable parameter that "
                f"the optimizer holds and whose name is chosen, of {names[:5]} ..."
            )
        self.network = network
        self.optimizer = optimizer
        self.step_size = step_size
        self.method = method
        self.difference_norm = difference_norm
        self.average = average
        self.precision = Precision()
        self._falls_back = method == "difference"

    def __call__(
        self,
        inner: LabelledBatch,
        outer_loss: OuterLoss,
        meta_parameters: Sequence[Tensor],
        penalty: Tensor | None = None,
    ) -> MetaGradient:
        """Return the gradient of ``outer_loss`` after the look-ahead step on ``inner``.

        Args:
            inner: what the look-ahead step learns from; its targets carry a graph to ``meta_parameters``.
            outer_loss: gets a function from images to logits at the look-ahead parameters, returns a scalar.
            meta_parameters: leaves of the graph of ``inner.targets``.
            penalty: scalar whose gradient is added.
        """
        return self.in_parts([inner], [outer_loss], meta_parameters, penalty)

    def in_parts(
        self,
        inner: Sequence[LabelledBatch],
        outer_losses: Sequence[OuterLoss],
        meta_parameters: Sequence[Tensor],
        penalty: Tensor | None = None,
    ) -> MetaGradient:
        """Do the same with batches of which one part at a time fits into memory.

        There is one look-ahead step, on the mean of the parts' gradients, and one outer loss, their mean: the result is
        that of the whole batch.

        Args:
            inner: parts of the same size.
            outer_losses: one for each of as many parts of the outer data, the mean of which is the outer loss.
            meta_parameters: leaves of the graph of the targets.
            penalty: scalar whose gradient is added.
        """
        device = inner[0].image.device
        with preserved_random_state(device) as state:
            if self.method == "double_backward":
                return self._double_backward(inner, outer_losses, meta_parameters, penalty)
            inner_value, gradients = self._inner_gradient(inner)
            rates = self._rates()
            diagonal = preconditioner(self.optimizer, list(self.parameters.values()), gradients)
            scaled = [rate * p for rate, p in zip(rates, diagonal, strict=True)]
            del diagonal
            outer_value, direction = self._outer_direction(gradients, scaled, outer_losses)
            del gradients, scaled
            set_random_state(state, device)
            totals = []
            for part in inner:
                change, method = self._derivative(direction, part.image, device)
                totals.append((part.weights.detach() * part.targets * change).sum() / part.weights.numel())
        total = torch.stack(totals).mean()
        return self._finish(total, penalty, meta_parameters, inner_value, outer_value, method)

    def _inner_gradient(self, inner: Sequence[LabelledBatch]) -> tuple[Tensor, list[Tensor]]:
        parameters = {**self._resting(), **self.parameters}

        def loss_of(part: LabelledBatch) -> Tensor:
            logits = self._forward(parameters, part.image)
            return soft_cross_entropy(logits, part.targets.detach(), part.weights.detach())

        losses = [lambda part=part: loss_of(part) for part in inner]
        return self._mean_gradient(losses, list(self.parameters.values()))

    def _mean_gradient(
        self, losses: Sequence[Callable[[], Tensor]], parameters: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the mean of the losses and its gradient, over parts and ranks; one graph exists at a time."""
        scale = self.precision.loss_scale
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for loss_of in losses:
            with torch.enable_grad():
                loss = loss_of()
                found = torch.autograd.grad(scale * loss, list(parameters), allow_unused=True)
            own = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True)]
            gradients = own if not gradients else [a + b for a, b in zip(gradients, own, strict=True)]
            values.append(loss.detach())
        if scale * len(values) != 1.0:
            gradients = [g / (scale * len(values)) for g in gradients]
        self._average(gradients)
        return torch.stack(values).mean(), gradients

    def _forward(self, parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        with self.precision.autocast(image.device):
            return call(self.network, parameters, image)

    def _outer_direction(
        self, gradients: list[Tensor], scaled: list[Tensor], outer_losses: Sequence[OuterLoss]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        ahead = {
            name: (p.detach() - s * g).requires_grad_(True)
            for (name, p), s, g in zip(self.parameters.items(), scaled, gradients, strict=True)
        }
        parameters = {**self._resting(), **ahead}
        losses = [lambda loss=loss: loss(lambda image: self._forward(parameters, image)) for loss in outer_losses]
        value, outer = self._mean_gradient(losses, list(ahead.values()))
        direction = {name: s * g for name, s, g in zip(ahead, scaled, outer, strict=True)}
        return value, direction

    def _derivative(self, direction: dict[str, Tensor], image: Tensor, device: torch.device) -> tuple[Tensor, str]:
        if not self._falls_back:
            state = random_state(device)
            try:
                return self._forward_mode(direction, image), "forward"
            except NoForwardModeError as error:
                if self.method == "forward":
                    raise
                warnings.warn(
                    f"{type(self.network).__name__} has a layer without forward-mode derivative; the meta-gradient "
                    f"uses finite differences from here on ({str(error).splitlines()[0][:160]})",
                    stacklevel=3,
                )
                self._falls_back = True
                set_random_state(state, device)
        change = finite_difference(self.network, self.parameters, direction, image, self.difference_norm)
        return change, "difference"

    def _forward_mode(self, direction: dict[str, Tensor], image: Tensor) -> Tensor:
        if not self.precision.reduced:
            return forward_mode(self.network, self.parameters, direction, image)
        # It is linear in the direction: made as long as the parameters, its numbers are of the activations' size.
        length, wanted = _length(direction.values()), _length(self.parameters.values())
        factor = torch.where(length > 0, wanted / length, 1.0)
        with self.precision.autocast(image.device):
            moved = forward_mode(self.network, self.parameters, {n: factor * v for n, v in direction.items()}, image)
        return moved / factor

    def _double_backward(
        self,
        inner: Sequence[LabelledBatch],
        outer_losses: Sequence[OuterLoss],
        meta_parameters: Sequence[Tensor],
        penalty: Tensor | None,
    ) -> MetaGradient:
        """The same by differentiating through the look-ahead step, with a second-order graph; for comparison."""
        parameters = list(self.parameters.values())
        with torch.enable_grad():
            losses = [
                soft_cross_entropy(call(self.network, {}, part.image), part.targets, part.weights.detach())
                for part in inner
            ]
            loss = torch.stack(losses).mean()
            found = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
            gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
            diagonal = preconditioner(self.optimizer, parameters, [g.detach() for g in gradients])
            ahead = {
                name: p.detach() - rate * d * g
                for (name, p), rate, d, g in zip(
                    self.parameters.items(), self._rates(), diagonal, gradients, strict=True
                )
            }
            forward: Forward = lambda image: call(self.network, ahead, image)  # noqa: E731
            outer = torch.stack([outer_loss(forward) for outer_loss in outer_losses]).mean()
        return self._finish(outer, penalty, meta_parameters, loss.detach(), outer.detach(), "double_backward")

    def _finish(
        self,
        total: Tensor,
        penalty: Tensor | None,
        meta_parameters: Sequence[Tensor],
        inner_loss: Tensor,
        outer_loss: Tensor,
        method: str,
    ) -> MetaGradient:
        total = total if penalty is None else total + penalty
        gradients = torch.autograd.grad(total, list(meta_parameters), allow_unused=True)
        present = [g for g in gradients if g is not None]
        norm = torch.stack([g.double().square().sum() for g in present]).sum().sqrt() if present else torch.zeros(())
        return MetaGradient(gradients, inner_loss, outer_loss, norm, method)

    def _resting(self) -> dict[str, Tensor]:
        """Return the parameters that stay, detached: no graph is kept for layers before those that move."""
        return {n: p.detach() for n, p in self.network.named_parameters() if n not in self.parameters}

    def _rates(self) -> list[float]:
        groups = group_of(self.optimizer)
        if self.step_size is not None:
            return [self.step_size] * len(self.parameters)
        return [float(groups[id(p)]["lr"]) for p in self.parameters.values()]

    def _average(self, tensors: list[Tensor]) -> None:
        if self.average is not None:
            self.average(tensors)


def _length(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack([t.detach().double().square().sum() for t in tensors]).sum().sqrt().float()
