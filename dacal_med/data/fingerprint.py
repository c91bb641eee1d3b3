# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Everything that decides what an object does, as plain values: equal ones give equal results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dacal_med.io.files import file_state

if TYPE_CHECKING:
    from dacal_med.data.datalist import Datalist

OPAQUE = (np.random.RandomState, np.random.Generator, torch.Generator)  # chance decides nothing here
_AS_IT_IS = object()
Told = Callable[[Any], Any]


def describe(value: Any, told: Told = lambda _: _AS_IT_IS) -> Any:
    """Describe an object by its class and attributes, a function by its name and code, arrays by their digest.

    Args:
        value: anything: transforms, entries, numbers, arrays.
        told: gives what is described instead of an object, :func:`as_it_is` for the object itself.

    Returns:
        Lists, names with values (a class under the name ""), text and numbers, as JSON has them; the same in every
        process.
    """
    return _describe(value, told, ())


def as_it_is() -> Any:
    """Return what a function ``told`` of :func:`describe` gives for an object that is described as any other."""
    return _AS_IT_IS


def flatten(description: Any, name: str = "") -> dict[str, str]:
    """Return a description as text by place, with ``#`` between levels as in configurations.

    Args:
        description: of :func:`describe`.
        name: of the whole.
    """
    if isinstance(description, dict):
        below = list(description.items())
    elif isinstance(description, list) and any(isinstance(part, (list, dict)) for part in description):
        below = list(enumerate(description))
    else:
        return {name: description if isinstance(description, str) else json.dumps(description)}
    found: dict[str, str] = {}
    for key, part in below:
        found.update(flatten(part, "#".join(filter(None, (name, str(key))))))
    return found


def describe_data(datalist: Datalist) -> dict[str, str]:
    """Describe a data set by its classes and the names and sizes of its files, wherever it lies.

    Args:
        datalist: the data set.

    Returns:
        Text by name, for the description of a run.
    """
    lists = {"source": datalist.source, "target_train": datalist.target_train, "target_val": datalist.target_val}
    files = ("image", "label")
    paths = [entry[key] for entries in lists.values() for entry in entries for key in files if key in entry]
    above = os.path.commonpath([os.path.dirname(path) for path in paths])

    def told(key: str, value: str) -> list[Any]:
        return [key, value] if key not in files else [os.path.relpath(value, above), [s for s, _ in file_state(value)]]

    found = {"classes": ", ".join(datalist.class_names)}
    for name, entries in lists.items():
        content = [[told(key, value) for key, value in sorted(entry.items())] for entry in entries]
        values = [datalist.label_values, datalist.ignore_values, content]
        found[f"data#{name}"] = f"{len(entries)} images, {_digest(values)[:16]}"
    return found


def _describe(value: Any, told: Told, above: tuple[int, ...]) -> Any:
    instead = told(value)
    value = value if instead is _AS_IT_IS else instead
    if value is None or (isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)):
        return value
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        array = np.ascontiguousarray(torch.as_tensor(value).detach().cpu().numpy())
        return f"array {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
    if isinstance(value, (Path, Enum, torch.dtype, np.dtype, torch.device, slice, range)):
        return f"{type(value).__name__} {value!s}"
    if isinstance(value, bytes):
        return f"bytes {value!r}"
    if id(value) in above:
        return "itself"

    def part(of: Any) -> Any:
        return _describe(of, told, (*above, id(value)))

    if isinstance(value, (list, tuple)):
        return [part(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return ["set", *sorted(json.dumps(part(item)) for item in value)]
    if isinstance(value, Mapping):
        return {key: part(item) for key, item in sorted((str(k), v) for k, v in value.items())}
    if isinstance(value, partial):
        return {"": "partial", "func": part(value.func), "args": part(value.args), "keywords": part(value.keywords)}
    if isinstance(value, MethodType):
        return {"": f"method {value.__name__}", "self": part(value.__self__)}
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        defaults = [value.__defaults__, value.__kwdefaults__]
        return {"": _name(value), "code": _code(value.__code__), "defaults": part(defaults), "closure": part(cells)}
    if isinstance(value, type) or not hasattr(value, "__dict__"):
        return _name(value if isinstance(value, type) else type(value))
    kept = {key: of for key, of in sorted(vars(value).items()) if not isinstance(of, OPAQUE)}
    return {"": _name(type(value)), **{key: part(of) for key, of in kept.items()}}


def _code(code: CodeType) -> str:
    constants = [_code(part) if isinstance(part, CodeType) else describe(part) for part in code.co_consts]
    return _digest([hashlib.sha256(code.co_code).hexdigest(), constants, code.co_names])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _name(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
