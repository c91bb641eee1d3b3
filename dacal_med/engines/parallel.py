# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Keeping ranks together: in-place averages and broadcasts over ``torch.distributed``, no-ops in a single process.

Gradients are averaged explicitly instead of by ``DistributedDataParallel``: the bi-level step needs the averages of
gradients that no backward hook sees, and one way for all of them is easier to trust.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def world_size() -> int:
    """Return the number of ranks, 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Return the rank of this process, 0 where nothing is distributed."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Return whether this process is rank 0, the one that writes files."""
    return own_rank() == 0


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks."""
    result = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(result)
    return result


def any_rank(flag: bool) -> bool:
    """Return whether the flag is set on any rank; every rank must ask at the same point."""
    if world_size() == 1:
        return flag
    cuda = torch.cuda.is_available() and dist.get_backend() == "nccl"
    value = torch.tensor(float(flag), device=torch.device("cuda", torch.cuda.current_device()) if cuda else None)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value)


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier()


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over ranks, in place, in one communication per dtype."""
    ranks = world_size()
    if ranks == 1 or not tensors:
        return
    # Not a set: dtypes hash by address, so that each rank would walk one in an order of its own.
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        group = [t for t in tensors if t.dtype == dtype]
        flat = torch.cat([t.reshape(-1) for t in group])
        dist.all_reduce(flat)
        flat /= ranks
        offset = 0
        for tensor in group:
            tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
            offset += tensor.numel()


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks; a missing gradient counts as zero where any rank could have one."""
    if world_size() == 1:
        return
    gradients = []
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    average(gradients)


def broadcast_module(module: nn.Module) -> None:
    """Give every rank the weights and buffers of rank 0."""
    if world_size() == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.data, src=0)
