# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What an error says to a user: in one line, where it is one that a user can do something about."""

from __future__ import annotations

import os
import pydoc
import sys
import traceback
import types
from collections.abc import Iterator
from pathlib import Path

from monai import bundle as monai_bundle
from monai.utils import instantiate

from dacal_med.io.errors import InputError

_MONAI_BUNDLE = str(Path(monai_bundle.__file__).parent) + os.sep
_MONAI_INSTANTIATE = instantiate.__code__.co_filename
LONGEST = 500  # characters of a problem that is told
# What the packages of the extra `train` are imported as.
TRAINING = ("filelock", "matplotlib", "numba", "packaging", "psutil", "scipy", "skimage", "tensorboard", "tqdm")


def show_input_errors_plainly() -> None:
    """Let the process end on the message of an :func:`explained` error instead of a traceback through MONAI.

    With the environment variable ``DACAL_MED_TRACEBACK=1``, and for every other error, the traceback is shown as usual.
    """
    original = sys.__excepthook__

    def hook(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        message = explained(error)
        if message is None:
            original(kind, error, trace)
        else:
            print(f"\ndacal_med: {message}", file=sys.stderr, flush=True)

    sys.excepthook = hook


def explained(error: BaseException) -> str | None:
    """Return in one line what a user can do something about, or ``None`` if ``error`` is no such thing.

    That is an :class:`InputError`, or what MONAI raises where a configuration cannot be built: a target or reference
    that does not exist, references in a circle, arguments that a target does not take, an expression that fails by
    itself; or a package of the extra ``train`` is missing. An error inside what an expression calls is none. With the
    environment variable ``DACAL_MED_TRACEBACK=1`` nothing is explained, so that the traceback is seen.
    """
    if os.environ.get("DACAL_MED_TRACEBACK") == "1":
        return None
    cause = input_error_in(error)
    return missing_package(error) or configuration_problem(error) if cause is None else str(cause)


def input_error_in(error: BaseException | None) -> InputError | None:
    """Return the :class:`InputError` that ``error`` is or was raised from, or ``None``."""
    return next((link for link in _chain(error) if isinstance(link, InputError)), None)


def missing_package(error: BaseException) -> str | None:
    """Return in one line that a package of the extra ``train`` is missing, or ``None`` if ``error`` is none of that."""
    names = [str(link.name) for link in _chain(error) if isinstance(link, ModuleNotFoundError)]
    found = next((name for name in names if name.split(".")[0] in TRAINING), None)
    return None if found is None else f"found no package {found}, wanted pip install 'dacal-med[train]'"


def configuration_problem(error: BaseException) -> str | None:
    """Return in one line why MONAI cannot build a configuration, or ``None`` if ``error`` is something else."""
    links = list(_chain(error))
    first = links[0]
    # MONAI's words; what an expression refers to is built before it is evaluated, so that this is never a run's error.
    component = str(first).startswith("Failed to instantiate component") or isinstance(first, pydoc.ErrorDuringImport)
    wrapped = component or str(first).startswith("Failed to evaluate")
    link = links[-1] if wrapped else first
    places = [frame.f_code for frame, _ in traceback.walk_tb(link.__traceback__)]
    parsing = isinstance(link, RecursionError | SyntaxError) and any(map(_of_monai, places))
    if not (isinstance(first, Exception) and (component or parsing or (places and _of_monai(places[-1])))):
        return None
    told = [str(first).partition(" with keywords")[0]] if wrapped else []
    text = " ".join(": ".join([*told, f"{type(link).__name__}: {link}"]).split())
    shown = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return f"configuration: {shown} (DACAL_MED_TRACEBACK=1 shows where)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, what it was raised from, what that was raised from ..."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or error.__context__


def _of_monai(place: types.CodeType) -> bool:
    """Whether code is MONAI's reading of configurations, or an expression of one (``<module>``, ``<lambda>`` ...)."""
    file = place.co_filename
    expression = file == "<string>" and place.co_name.startswith("<")  # others are methods that dataclasses generate
    return expression or file.startswith(_MONAI_BUNDLE) or file == _MONAI_INSTANTIATE
