# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""How a network's log-probabilities move when its parameters do: forward mode, finite differences, optimizer's step.

Forward-mode differentiation gives the directional derivative in one forward pass without a graph. Calls go through
:func:`torch.func.functional_call` with copies of the buffers, so that batch-norm statistics stay where they are, and
with ``tie_weights=False``, without which networks that register a submodule twice are corrupted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.optim import SGD, Adam, AdamW, Optimizer

from dacal_med.core.tensors import plain


class NoForwardModeError(RuntimeError):
    """A layer of the network has no forward-mode derivative."""


def call(network: nn.Module, parameters: Mapping[str, Tensor], image: Tensor) -> Tensor:
    """Return the network's logits at other parameters, leaving its own parameters and buffers untouched.

    Args:
        network: maps ``(B, channels, *spatial)`` to ``(B, C, *spatial)``.
        parameters: by name; parameters that are not named keep their values.
        image: ``(B, channels, *spatial)``.

    Returns:
        Logits in at least float32.

    Raises:
        TypeError: if the network returns something else than a tensor.
    """
    buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    values = {**_by_owner(network, parameters), **buffers}
    logits = functional_call(network, values, (plain(image),), tie_weights=False)
    if not isinstance(logits, Tensor):
        raise TypeError(f"the network returned {type(logits).__name__}, wanted one tensor of logits (B, C, *spatial)")
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def _by_owner(network: nn.Module, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name each value once for every module that holds the parameter: tied weights move together."""
    values = {id(p): parameters[name] for name, p in network.named_parameters() if name in parameters}
    return {
        f"{prefix}.{attribute}" if prefix else attribute: values[id(p)]
        for prefix, module in network.named_modules()
        for attribute, p in module.named_parameters(recurse=False, remove_duplicate=False)
        if id(p) in values
    }


def forward_mode(
    network: nn.Module, parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], image: Tensor
) -> Tensor:
    """Return the derivative of the log-probabilities ``(B, C, *spatial)`` along ``direction``, by one forward pass.

    Raises:
        NoForwardModeError: if a layer has no forward-mode derivative.
    """
    try:
        with torch.no_grad(), forward_ad.dual_level():
            dual = {name: forward_ad.make_dual(p.detach(), direction[name]) for name, p in parameters.items()}
            moved = call(network, dual, image).log_softmax(dim=1)
            tangent = forward_ad.unpack_dual(moved).tangent
            return torch.zeros_like(forward_ad.unpack_dual(moved).primal) if tangent is None else tangent.clone()
    except (RuntimeError, NotImplementedError) as error:
        if any(words in str(error).lower() for words in ("forward ad", "forward mode", "jvp")):
            raise NoForwardModeError(str(error)) from error
        raise


@torch.no_grad()
def finite_difference(
    network: nn.Module, parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], image: Tensor, norm: float
) -> Tensor:
    """Return the same derivative from a central difference of two forward passes.

    Args:
        network: as in :func:`call`.
        parameters: the point.
        direction: the direction, of any length.
        image: ``(B, channels, *spatial)``.
        norm: length of the step to either side, in parameter space.
    """
    length = float(torch.stack([v.double().square().sum() for v in direction.values()]).sum().sqrt())
    step = norm / length if length > 0.0 else 0.0
    state = random_state(image.device)
    outputs = []
    for sign in (1.0, -1.0):
        set_random_state(state, image.device)
        moved = {name: p + sign * step * direction[name] for name, p in parameters.items()}
        outputs.append(call(network, moved, image).log_softmax(dim=1))
    return (outputs[0] - outputs[1]) / (2.0 * step) if step > 0.0 else torch.zeros_like(outputs[0])


def preconditioner(
    optimizer: Optimizer, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]
) -> list[Tensor]:
    """Return the diagonal preconditioner ``P`` that the optimizer's next step would use, per parameter.

    SGD: 1. Adam and AdamW: ``1 / (sqrt(v) + eps)`` with the bias-corrected second moment ``v`` that includes the given
    gradient, of which Adam's weight decay is a part. Momentum, which would scale the step by one factor, and decoupled
    weight decay are left out.

    Args:
        optimizer: over at least these parameters.
        parameters: whose preconditioner is wanted.
        gradients: their gradients, held constant.

    Raises:
        TypeError: for another optimizer.
        ValueError: for one that maximises.
    """
    if any(group.get("maximize", False) for group in optimizer.param_groups):
        raise ValueError("optimizer: found maximize=True, wanted one that minimises")
    if isinstance(optimizer, SGD):
        return [torch.ones_like(g) for g in gradients]
    if not isinstance(optimizer, (Adam, AdamW)):
        raise TypeError(f"optimizer: found {type(optimizer).__name__}, wanted SGD, Adam or AdamW")
    groups = group_of(optimizer)
    result = []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        group = groups[id(parameter)]
        state = optimizer.state.get(parameter, {})
        beta = float(group["betas"][1])
        second = state.get("exp_avg_sq", torch.zeros_like(gradient)).detach()
        steps = float(state.get("step", 0)) + 1.0
        gradient = gradient.detach()
        if not isinstance(optimizer, AdamW) and not group.get("decoupled_weight_decay", False):
            gradient = gradient + group["weight_decay"] * parameter.detach()
        second = beta * second + (1.0 - beta) * gradient.square()
        if group["amsgrad"] and "max_exp_avg_sq" in state:
            second = torch.maximum(second, state["max_exp_avg_sq"])
        result.append(1.0 / ((second / (1.0 - beta**steps)).sqrt() + group["eps"]))
    return result


def group_of(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Return the parameter group of each parameter, by ``id``."""
    return {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}


def random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return the state of the random generators that a forward pass on ``device`` uses."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Set what :func:`random_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


@contextmanager
def preserved_random_state(device: torch.device) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Give the random state at entry, and set it again at exit."""
    state = random_state(device)
    try:
        yield state
    finally:
        set_random_state(state, device)
