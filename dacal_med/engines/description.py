# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What makes two runs the same experiment, from the objects that a configuration made.

A component of a bundle does not see the configuration, and what a configuration says (a reference, an expression) is
not yet what it means. So the live objects are described: classes, settings, shapes. Where a run computes, how it loads
and where its files are is left out.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
from monai.data import Dataset
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dacal_med.data.fingerprint import OPAQUE, as_it_is, describe, flatten

if TYPE_CHECKING:
    from dacal_med.engines.trainer import AdaptationTrainer

_PASSING = ("optimizer", "last_epoch")  # of a schedule


def describe_trainer(trainer: AdaptationTrainer) -> dict[str, str]:
    """Describe a trainer with all that it is made of, before its first iteration; see :func:`describe_parts`."""
    student, loader = trainer.student, trainer.loader
    parts = {
        "network": trainer.network,
        "optimizer": trainer.optimizer,
        "host": trainer.host,
        "labeller": trainer.labeller,
        "meta": trainer.meta,
        "feedback": trainer.feedback,
        "loss_function": student.loss_function,
        "truth_loss_function": student.truth_loss_function,
        "inferer": trainer.inferer,
        "dataset": loader.dataset,
        "num_classes": trainer.num_classes,
        "ignore_index": trainer.ignore_index,
        "teacher_decay": trainer.teacher.decay,
        "max_gradient_norm": student.max_gradient_norm,
        "max_skipped": trainer.max_skipped,
        "epoch_length": trainer.state.epoch_length,
        # The schedule of the learning rate ends with the run: a longer run is another one from its start.
        "max_epochs": trainer.state.max_epochs,
        "warmup_epochs": trainer.warmup_epochs,
        "settle_epochs": trainer.settle_epochs,
        "seed": trainer.seed,
        # In how many parts it is seen, over ranks and micro-batches, does not matter.
        "batch": loader.batch_size * loader.world_size,
        # As asked for; what a device makes of it is the device's.
        "amp": trainer.amp_asked,
        "precision": trainer.precision,
    }
    found = describe_parts(parts)
    return {place: text for place, text in found.items() if place.split("#")[0] != "precision"}


def describe_parts(parts: Mapping[str, Any]) -> dict[str, str]:
    """Describe the parts of a run.

    Args:
        parts: settings and objects by name; one that is met inside another is told by its name there.

    Returns:
        Text by place, e.g. ``{"meta#every": "4"}``; the same in every process.
    """
    found: dict[str, str] = {}
    for name, part in parts.items():
        others = {id(other): f"the {key}" for key, other in parts.items() if other is not part and _is_object(other)}
        found.update(flatten(describe(part, _teller(others)), name))
    return found


def _is_object(value: Any) -> bool:
    return hasattr(value, "__dict__") and not isinstance(value, FunctionType | type | Enum | Mapping | torch.Tensor)


def _teller(others: Mapping[int, str]) -> Callable[[Any], Any]:
    def told(value: Any) -> Any:
        if id(value) in others:
            return others[id(value)]
        if isinstance(value, torch.device):
            return "a device"
        if isinstance(value, nn.Parameter):
            return str(tuple(value.shape))
        if isinstance(value, str | Path) and os.sep in str(value) and os.path.isfile(value):
            return f"a file, {hashlib.sha256(Path(value).read_bytes()).hexdigest()[:16]}"
        if isinstance(value, Dataset):
            return {"": "data set", "items": len(value), "transform": value.transform}
        if isinstance(value, nn.Module):
            return _module(value)
        if isinstance(value, Optimizer):
            return _optimizer(value)
        if isinstance(value, LRScheduler):
            return {"": _class(value), **{k: v for k, v in _settings(value).items() if k not in _PASSING}}
        if isinstance(value, FunctionType) and value.__closure__ is None and "<" not in value.__qualname__:
            return f"{value.__module__}.{value.__qualname__}"
        if _is_object(value) and len(_settings(value)) < len(vars(value)):
            return {"": _class(value), **_settings(value)}
        return as_it_is()

    return told


def _settings(value: Any) -> dict[str, Any]:
    """The attributes of an object but for those that are its own affair."""
    return {key: part for key, part in vars(value).items() if not (key.startswith("_") or isinstance(part, OPAQUE))}


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _module(module: nn.Module) -> dict[str, Any]:
    """A module by its class, shapes and settings, and its parts."""
    shapes = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    told = _class(module)
    if shapes:
        first, last = shapes[0], shapes[-1]
        told += f", {len(shapes)} tensors, {sum(math.prod(shape) for _, shape in shapes)} parameters, "
        told += f"{first[0]} {first[1]} … {last[0]} {last[1]}"
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    settings = {key: part for key, part in _settings(module).items() if key != "training"}
    children = dict(module.named_children())
    return {"": told, **settings, **{name: str(tuple(tensor.shape)) for name, tensor in own}, **children}


def _optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """An optimizer by its class and the settings of its groups; the rate is that which a schedule starts from."""
    groups = []
    for group in optimizer.param_groups:
        settings = {key: part for key, part in group.items() if key not in ("params", "initial_lr")}
        groups.append({**settings, "lr": group.get("initial_lr", group["lr"]), "tensors": len(group["params"])})
    return {"": _class(optimizer), **(groups[0] if len(groups) == 1 else {"groups": groups})}
