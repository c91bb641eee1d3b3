# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What bundle configurations call before they run: find the bundle, check overrides, tell errors readably."""

from __future__ import annotations

import difflib
import inspect
import json
import os
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ComponentLocator, ConfigParser
from monai.utils import optional_import

from dacal_med.errors import InputError

# Arguments of `monai.bundle run` itself; everything else on its command line overrides a key of the configuration.
RUN_ARGUMENTS = frozenset(
    {
        "run_id",
        "init_id",
        "final_id",
        "meta_file",
        "config_file",
        "logging_file",
        "tracking",
        "args_file",
        "workflow_type",
        "workflow_name",
        "properties_path",
    }
)


def find_root(name: str) -> str:
    """Return the folder of the bundle called ``name``.

    MONAI does not tell a configuration where it was read from, so the command line is looked at first, then the
    bundle's own folder as working directory, then ``bundles/<name>`` below it.

    Args:
        name: the bundle's folder name.

    Returns:
        A path that exists from the current working directory.

    Raises:
        InputError: if none of the places holds ``configs/metadata.json``.
    """
    candidates = [Path(file).resolve().parent.parent for file in _config_files(sys.argv[1:])]
    candidates += [Path.cwd(), Path.cwd() / "bundles" / name]
    for folder in candidates:
        if (folder / "configs" / "metadata.json").is_file():
            return os.path.relpath(folder)
    raise InputError(
        f"bundle_root: found no configs/metadata.json in {', '.join(map(str, candidates))}; "
        f"run from the repository or the bundle's folder, or give --bundle_root"
    )


def start(argv: Sequence[str] | None = None) -> None:
    """Prepare the process: threads, readable errors, no misspelt overrides. The first line of ``initialize``.

    Args:
        argv: the command line without the program; that of the process by default.

    Raises:
        InputError: for an override whose key the configuration does not have.
    """
    show_input_errors_plainly()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        torch.set_num_threads(int(threads))
    check_overrides(sys.argv[1:] if argv is None else argv)


def show_input_errors_plainly() -> None:
    """Let the process end on the message of an :class:`InputError` instead of a traceback through MONAI.

    MONAI wraps errors raised while a configuration is built, so the whole chain is searched. With the environment
    variable ``DACAL_MED_TRACEBACK=1``, and for every other error, the traceback is shown as usual.
    """
    original = sys.__excepthook__

    def hook(kind: type[BaseException], error: BaseException, trace: types.TracebackType | None) -> None:
        cause = input_error_in(error)
        if cause is None or os.environ.get("DACAL_MED_TRACEBACK") == "1":
            original(kind, error, trace)
        else:
            print(f"\ndacal_med: {cause}", file=sys.stderr, flush=True)

    sys.excepthook = hook


def input_error_in(error: BaseException | None) -> InputError | None:
    """Return the :class:`InputError` that ``error`` is or was raised from, or ``None``."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, InputError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def check_overrides(argv: Sequence[str]) -> None:
    """Refuse overrides that would silently change nothing.

    MONAI adds an unknown key, so that ``--max_epoch 5`` would change nothing, and drops an override of ``None``.

    Args:
        argv: a command line of ``monai.bundle run``; anything else is left alone.

    Raises:
        InputError: naming the key, and the closest known ones.
    """
    files = _config_files(argv)
    if not files:
        return
    config = ConfigParser.load_config_files(files)
    arguments_file = dict(_options(argv)).get("args_file")
    overrides = []
    for key, value in _options(argv):
        check_value(key, value)
        overrides.append(key)
    if arguments_file is not None:
        overrides += list(ConfigParser.load_config_files(arguments_file))
    for key in overrides:
        if key not in RUN_ARGUMENTS:
            _check_key(key.replace("::", "#"), config)


def check_value(key: str, value: str) -> None:
    """Refuse ``--key None``, which MONAI takes for an override that was not given.

    Args:
        key: the key of the configuration, without dashes.
        value: what follows it on the command line.

    Raises:
        InputError: that says how to write it.
    """
    if value.strip() == "None":
        raise InputError(f"override --{key}: found None, which MONAI drops; wanted --{key} '$None', or no override")


def _check_key(key: str, config: Mapping[str, Any]) -> None:
    node: Any = config
    path: list[str] = []
    for part in key.split("#"):
        if isinstance(node, str):
            return  # a reference or expression: what lies below it is not known here
        if isinstance(node, list):
            known = [str(index) for index in range(len(node))]
        elif isinstance(node, Mapping):
            known = [*node, *_parameters(node.get("_target_"))]
            if "**" in known and part not in node:
                return
        else:
            known = []
        if part not in known:
            close = difflib.get_close_matches(part, known, n=3)
            where = f" in {'#'.join(path)!r}" if path else ""
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else f"; known are {sorted(known)}"
            raise InputError(f"override --{key}: found no key {part!r}{where}{hint}")
        path.append(part)
        node = node[int(part)] if isinstance(node, list) else node.get(part, "")


def _parameters(target: str | None) -> list[str]:
    """Return the names that a ``_target_`` accepts; ``"**"`` among them if it accepts any."""
    if target is None:
        return []
    module, _, attribute = target.rpartition(".")
    if not module:  # MONAI's own components go by their bare name
        places = ComponentLocator().get_component_module_name(attribute)
        module = places if isinstance(places, str) else next(iter(places or []), "")
    component: Any
    component, found = optional_import(module, name=attribute) if module else (None, False)
    if not found:
        return ["**"]
    parameters = inspect.signature(component).parameters.values()
    return ["**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters]


def _options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield ``(name, value)`` of ``--name value`` and ``--name=value``."""
    for position, word in enumerate(argv):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            following = argv[position + 1] if position + 1 < len(argv) else ""
            yield name, value if equals else following


def _config_files(argv: Sequence[str]) -> list[str]:
    """Return the configuration files named on a command line, those that exist."""
    options = dict(_options(argv))
    value: Any = options.get("config_file")
    if value is None and "args_file" in options and Path(options["args_file"]).is_file():
        value = ConfigParser.load_config_file(options["args_file"]).get("config_file")
    if value is None:
        return []
    if isinstance(value, str):
        value = value.strip()
        if value.startswith("["):
            # Fire accepts Python and JSON lists, quoted or not.
            try:
                value = json.loads(value.replace("'", '"'))
            except json.JSONDecodeError:
                value = [item.strip(" '\"") for item in value.strip("[]").split(",")]
        else:
            value = [item.strip() for item in value.split(",")]
    return [file for file in value if Path(file).is_file()]
