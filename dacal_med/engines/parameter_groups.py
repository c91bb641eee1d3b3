# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Parameter groups: a higher rate for fresh layers, no weight decay for normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from dacal_med.io.errors import InputError

_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm, _InstanceNorm)


def parameter_groups(
    network: nn.Module,
    learning_rate: float,
    head: Sequence[str] = ("head", "network.head", "attention"),
    head_factor: float = 10.0,
    decay_normalisation: bool = False,
) -> list[dict[str, Any]]:
    """Return an optimizer's groups as DAFormer has them (arXiv 2111.14887): the head learns ten times faster.

    The optimizer's own weight decay holds but for normalisation layers outside the head, which have none. A schedule
    scales the rates of all groups alike, and the bi-level step looks ahead with each parameter's own.

    Args:
        network: whose parameters are grouped.
        learning_rate: outside the head.
        head: dotted names of the modules with the higher rate, those that exist; by default the head of
            :class:`dacal_med.networks.SegmentationNetwork`, alone and inside HRDA, and HRDA's scale attention.
        head_factor: of their rate.
        decay_normalisation: whether normalisation layers decay like the rest.

    Returns:
        At most three groups: ``encoder``, ``encoder_norm`` and ``head``, each with ``name``.

    Raises:
        InputError: if no parameter is in a head, or a number is out of range.
    """
    if not learning_rate > 0.0 or not head_factor > 0.0:
        raise InputError(f"optimizer: found learning_rate={learning_rate}, head_factor={head_factor}, wanted above 0")
    groups: dict[str, list[nn.Parameter]] = {"encoder": [], "encoder_norm": [], "head": []}
    seen: set[int] = set()
    for prefix, module in network.named_modules():
        in_head = any(prefix == name or prefix.startswith(f"{name}.") for name in head)
        exempt = isinstance(module, _NORMALISATIONS) and not decay_normalisation
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups["head" if in_head else "encoder_norm" if exempt else "encoder"].append(parameter)
    if not groups["head"]:
        known = [name for name, _ in network.named_children()]
        raise InputError(f"optimizer#head: {type(network).__name__} has none of {list(head)}, it has {known}")
    options: dict[str, dict[str, Any]] = {
        "encoder": {"lr": learning_rate},
        "encoder_norm": {"lr": learning_rate, "weight_decay": 0.0},
        "head": {"lr": learning_rate * head_factor},
    }
    return [{"name": name, "params": params, **options[name]} for name, params in groups.items() if params]
