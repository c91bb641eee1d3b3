# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Everything that decides what a transform does, as plain values: equal ones give equal results."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch

_OPAQUE = (np.random.RandomState, np.random.Generator, torch.Generator)  # chance decides nothing here


def describe(value: Any) -> Any:
    """Describe an object by its class and attributes, a function by its name and code, arrays by their digest.

    Args:
        value: anything: transforms, entries, numbers, arrays.

    Returns:
        Lists, text and numbers, as JSON has them; the same in every process.
    """
    return _describe(value, ())


def _describe(value: Any, above: tuple[int, ...]) -> Any:
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        array = np.ascontiguousarray(torch.as_tensor(value).cpu().numpy())
        return ["array", str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
    if isinstance(value, (Path, Enum, torch.dtype, np.dtype, torch.device, slice, bytes, range)):
        return [type(value).__name__, str(value)]
    if id(value) in above:
        return "itself"
    inside = (*above, id(value))
    if isinstance(value, (list, tuple)):
        return [_describe(part, inside) for part in value]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(str(_describe(part, inside)) for part in value)]
    if isinstance(value, Mapping):
        return ["mapping", sorted(([str(k), _describe(v, inside)] for k, v in value.items()), key=lambda pair: pair[0])]
    if isinstance(value, partial):
        return ["partial", *(_describe(part, inside) for part in (value.func, value.args, value.keywords))]
    if isinstance(value, MethodType):
        return ["method", value.__name__, _describe(value.__self__, inside)]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, cells)
        return ["function", _name(value), *(_describe(part, inside) for part in parts)]
    if isinstance(value, CodeType):
        return ["code", hashlib.sha256(value.co_code).hexdigest(), _describe(value.co_consts, inside), *value.co_names]
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return _name(value if isinstance(value, type) else type(value))
    kept = {key: part for key, part in vars(value).items() if not isinstance(part, _OPAQUE)}
    return [_name(type(value)), _describe(kept, inside)]


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
