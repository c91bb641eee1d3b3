# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whether the content of a checkpoint can be what a run saved: kinds, shapes and finite numbers, part by part.

``load_state_dict`` of PyTorch and Ignite takes much of what no run saves, and fails iterations later or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dacal_med.engines.teacher import Teacher
from dacal_med.io.errors import InputError
from dacal_med.kinds import is_number

if TYPE_CHECKING:
    from dacal_med.engines.trainer import AdaptationTrainer

_Parts = Mapping[str, Any]


def check_parts(trainer: AdaptationTrainer, parts: _Parts, found: _Parts) -> None:
    """Refuse what no run like this one can have saved; nothing is changed.

    Args:
        trainer: which is about to continue, as built.
        parts: its parts by name, of which those known here are checked; others refuse by themselves what is wrong.
        found: their states in a file, by the same names.

    Raises:
        InputError: naming the place, what was found and what was wanted.
    """
    for name, part in parts.items():
        if part is trainer:
            _check_trainer(name, trainer, found[name])
        elif isinstance(part, Optimizer):
            _check_optimizer(name, part, found[name])
        elif isinstance(part, nn.Module | Teacher | torch.amp.GradScaler | LRScheduler):
            _check_like(name, part.state_dict(), found[name])


def not_finite(parts: _Parts) -> Iterator[str]:
    """Yield the places of tensors and numbers that are not finite.

    Args:
        parts: objects with ``state_dict`` by name, or what they hold.
    """
    for name, part in parts.items():
        yield from _not_finite(name, part.state_dict() if hasattr(part, "state_dict") else part)


def _not_finite(place: str, content: Any) -> Iterator[str]:
    if isinstance(content, Tensor | float):
        if not bool(torch.isfinite(torch.as_tensor(content)).all()):
            yield place
    elif isinstance(content, Mapping | list | tuple):
        for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
            yield from _not_finite(f"{place}.{key}", value)


def _check_trainer(place: str, trainer: AdaptationTrainer, found: Any) -> None:
    own = trainer.state_dict()
    _check_like(place, own, found)
    for name in ("epoch_length", "max_epochs"):
        if found[name] != own[name]:
            raise _wrong(f"{place}.{name}", found[name], repr(own[name]))
    last = own["epoch_length"] * own["max_epochs"]
    if found["iteration"] > last:
        raise _wrong(f"{place}.iteration", found["iteration"], f"a whole number from 0 to {last}")


def _check_optimizer(place: str, optimizer: Optimizer, found: Any) -> None:
    own = optimizer.state_dict()
    if not isinstance(found, Mapping) or not isinstance(found.get("state"), Mapping):
        raise _wrong(place, found, "names with values, 'state' and 'param_groups' among them")
    groups: Any = found.get("param_groups")
    _check_like(f"{place}.param_groups", own["param_groups"], groups)
    for index, (group, wanted) in enumerate(zip(groups, own["param_groups"], strict=True)):
        where = f"{place}.param_groups.{index}"
        if group["params"] != wanted["params"]:
            raise _wrong(f"{where}.params", group["params"], f"the numbers of {len(wanted['params'])} parameters")
        if float(group["lr"]) < 0.0:
            raise _wrong(f"{where}.lr", group["lr"], "a number from 0")
        if any(not 0.0 <= float(beta) < 1.0 for beta in group.get("betas", ())):
            raise _wrong(f"{where}.betas", group["betas"], "two numbers in [0, 1)")
    parameters = {
        number: (parameter, group)
        for live, group in zip(optimizer.param_groups, groups, strict=True)
        for number, parameter in zip(group["params"], live["params"], strict=True)
    }
    for number, kept in found["state"].items():
        if number not in parameters:
            raise _wrong(f"{place}.state", number, f"the numbers of {len(parameters)} parameters")
        _check_moments(f"{place}.state.{number}", optimizer, *parameters[number], kept)


def _check_moments(place: str, optimizer: Optimizer, parameter: Tensor, group: _Parts, kept: Any) -> None:
    """What an optimizer keeps of one parameter; of optimizers not known here, that it is finite."""
    if not isinstance(kept, Mapping):
        raise _wrong(place, kept, "names with values")
    bad = next(_not_finite(place, kept), None)
    if bad is not None:
        raise InputError(f"{bad}: found numbers that are not finite, wanted finite ones")
    if not kept:  # of a parameter that has had no gradient
        return
    names: list[str] = []
    if isinstance(optimizer, Adam | AdamW):
        names = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group.get("amsgrad") else [])]
        step: Any = kept.get("step")
        if not (is_number(step) or (isinstance(step, Tensor) and step.numel() == 1)) or float(step) < 0:
            raise _wrong(f"{place}.step", step, "a number from 0")
    elif isinstance(optimizer, SGD) and group["momentum"]:
        names = ["momentum_buffer"]
    for name in names:
        value = kept.get(name)
        if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.is_floating_point():
            raise _wrong(f"{place}.{name}", value, _kind(parameter))
        if name.endswith("_sq") and bool((value < 0).any()):  # of which the root is taken
            raise InputError(f"{place}.{name}: found a number below 0, wanted squares")


def _check_like(place: str, own: Any, found: Any) -> None:
    """Refuse what is of another kind or shape than ours, lacks a part of it, or is not finite where ours is."""
    if isinstance(own, Tensor):
        fits = isinstance(found, Tensor) and found.shape == own.shape
        fits = fits and found.is_floating_point() == own.is_floating_point()
        if fits and bool(torch.isfinite(own).all()) and not bool(torch.isfinite(found).all()):
            raise InputError(f"{place}: found numbers that are not finite, wanted finite ones")
    elif isinstance(own, bool):
        fits = isinstance(found, bool)
    elif isinstance(own, int):
        # A learning rate of 1 becomes a fraction with time, counters do not.
        rate = any(word.endswith(("lr", "lrs")) for word in place.split("."))
        fits = is_number(found) and (isinstance(found, int) or rate)
        fits = fits and (found >= 0 or own < 0)
    elif isinstance(own, float):
        fits = is_number(found, finite=math.isfinite(own))
    elif isinstance(own, str):
        fits = isinstance(found, str)
    elif isinstance(own, Mapping):
        fits = isinstance(found, Mapping)
        for key, value in own.items() if fits else ():
            # PyTorch's versions add switches, and set those that a file lacks.
            if key in found or not (value is None or isinstance(value, bool)):
                _check_like(f"{place}.{key}", value, found.get(key))
    elif isinstance(own, Sequence):
        fits = isinstance(found, list | tuple) and len(found) == len(own)
        for index, (value, other) in enumerate(zip(own, found, strict=True)) if fits else ():
            _check_like(f"{place}.{index}", value, other)
    elif own is None:
        fits = found is None or isinstance(found, bool | int | float)
    else:
        return
    if not fits:
        raise _wrong(place, found, _kind(own))


def _kind(value: Any) -> str:
    """What a value like ours is, in words."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {'numbers' if value.is_floating_point() else 'whole numbers'}"
    if isinstance(value, bool) or value is None:
        return "true, false or nothing"
    if isinstance(value, int):
        return "a whole number from 0" if value >= 0 else "a whole number"
    if isinstance(value, float):
        return "a finite number"
    if isinstance(value, str):
        return "text"
    return "names with values" if isinstance(value, Mapping) else f"a list of {len(value)}"


def _wrong(place: str, found: Any, wanted: str) -> InputError:
    if isinstance(found, Tensor):
        told = f"a tensor {tuple(found.shape)}"
    elif found is None:
        told = "nothing"
    else:
        told = repr(found) if isinstance(found, bool | int | float | str) else f"a {type(found).__name__}"
    return InputError(f"{place}: found {told[:100]}, wanted {wanted}")
