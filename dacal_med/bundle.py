# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What bundle configurations call before they run: find the bundle, check overrides, tell errors readably."""

from __future__ import annotations

import difflib
import inspect
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from fire.parser import DefaultParseValue
from monai.bundle import ComponentLocator, ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS
from monai.utils import optional_import

from dacal_med.command_line import check_texts, config_files, options
from dacal_med.explanations import LONGEST, show_input_errors_plainly
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.kinds import is_number, is_whole

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


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: is_whole(value, least)


def _listed(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list | tuple) and bool(value) and all(map(kind, value))


def _device(value: Any) -> bool:
    try:
        return isinstance(value, str) and torch.device(value) is not None
    except RuntimeError:
        return False


# What is wanted, whether a plain value is that, and the settings of `train.json` that it holds for.
_SETTINGS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "a path",
        lambda value: isinstance(value, str) and bool(value.strip()),
        "bundle_root output_dir ckpt_dir model_file dataset_dir",
    ),
    ("a whole number from 1", _whole(1), "spatial_dims in_channels num_classes batch_size epoch_length max_epochs"),
    ("a whole number from 0", _whole(0), "seed warmup_epochs settle_epochs num_workers warmup_draws"),
    ("a number", is_number, "learning_rate held_out_share"),
    ("true or false (True or False on a command line)", lambda value: isinstance(value, bool), "amp keep_source_end"),
    ("a list of whole numbers from 1", _listed(_whole(1)), "roi_size"),
    ("a list of numbers above 0", _listed(lambda value: is_number(value) and value > 0), "spacing"),
    ("a list of names", _listed(lambda value: isinstance(value, str)), "class_names"),
    ("the number of a class or null", lambda value: value is None or _whole(0)(value), "background"),
    ("a device", _device, "device"),
    (
        'an object with "_target_"',
        lambda value: isinstance(value, Mapping) and "_target_" in value,
        "datalist network_def network optimizer lr_scheduler loss_function truth_loss_function host labeller "
        "meta_objective meta",
    ),
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
    candidates = [Path(file).resolve().parent.parent for file in _config_files(options(sys.argv[1:]))]
    candidates += [Path.cwd(), Path.cwd() / "bundles" / name]
    for folder in candidates:
        if (folder / "configs" / "metadata.json").is_file():
            return os.path.relpath(folder)
    raise InputError(
        f"bundle_root: found no configs/metadata.json in {', '.join(map(str, candidates))}; "
        f"run from the repository or the bundle's folder, or give --bundle_root"
    )


def names_among(names: Sequence[str], class_names: Sequence[str], key: str) -> list[str]:
    """Return those of ``names`` that are classes, in their order: a setting for data with some of them.

    Args:
        names: as configured.
        class_names: names by channel.
        key: of the configuration, which has the names.

    Raises:
        InputError: naming the key, if none is a class.
    """
    found = [name for name in names if name in class_names]
    if not found:
        raise InputError(
            f"{key}: found {', '.join(names)}, none of them a class of the data; "
            f"wanted --{key} \"['NAME', ...]\" with some of {', '.join(class_names)}"
        )
    return found


def start(argv: Sequence[str] | None = None) -> None:
    """Prepare the process: readable errors, SIGTERM, threads, no misspelt overrides. The first line of ``initialize``.

    Args:
        argv: the command line without the program; that of the process by default.

    Raises:
        InputError: for an override whose key the configuration does not have.
    """
    show_input_errors_plainly()
    end_well_at_sigterm()
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        torch.set_num_threads(int(threads))
    check_overrides(sys.argv[1:] if argv is None else argv)


def end_well_at_sigterm() -> None:
    """Let SIGTERM (a cluster's preemption) end the process with status 0 and a line, while there is nothing to save.

    A training's own handler (:class:`~dacal_med.handlers.ResumableCheckpoint`) takes its place as long as it runs.
    Where someone else handles SIGTERM, and outside the main thread, which alone may, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return
    owner = os.getpid()

    def end(number: int, frame: types.FrameType | None) -> None:
        if os.getpid() != owner:  # a process that loads data, which has nothing to tell
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        # Not print: the signal may have interrupted one.
        os.write(2, b"\ndacal_med: ended by SIGTERM outside training, nothing to save; start it again\n")
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)


def read_config(files: str | Path | Sequence[str | Path]) -> dict[str, Any]:
    """Read configuration files, later ones over earlier ones, as ``monai.bundle run`` does.

    Args:
        files: JSON or YAML.

    Raises:
        InputError: naming the file that is missing, malformed or no object, or those that do not fit one another.
    """
    names = [str(files)] if isinstance(files, str | Path) else [str(file) for file in files]
    for name in names:
        read_file(name)
    try:
        merged: dict[str, Any] = ConfigParser.load_config_files(names)
    except Exception as error:  # a key that reaches into what is no object
        raise InputError(f"{', '.join(names)}: cannot be merged ({type(error).__name__}: {error})") from error
    return merged


def read_file(name: str) -> dict[str, Any]:
    """Read one configuration file, or a file of arguments, with its keys as written.

    Args:
        name: of a JSON or YAML file.

    Raises:
        InputError: naming the file that is missing, malformed or no object.
    """
    if not given_path(name, "config_file").is_file():
        raise InputError(f"config_file: found no file {name}")
    try:
        content = ConfigParser.load_config_file(name)
    except Exception as error:  # two parsers, their depth, the encoding, a key twice, another ending
        problem = " ".join(str(error).split())[:LONGEST]
        raise InputError(
            f"{name}: cannot be read as a configuration ({type(error).__name__}: {problem}); wanted JSON or YAML"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InputError(f"{name}: found a {type(content).__name__}, wanted an object with names as keys")
    return content


def check_overrides(argv: Sequence[str]) -> None:
    """Refuse overrides that would silently change nothing, texts that would be changed, and settings of the wrong kind.

    MONAI adds an unknown key, so that ``--max_epoch 5`` would change nothing, and drops an override of ``None``.

    Args:
        argv: a command line of ``monai.bundle run``; anything else is left alone.

    Raises:
        InputError: naming the key, and the closest known ones or what was wanted.
    """
    typed = options(argv)
    files = _config_files(typed)
    if not files:
        return
    config = read_config(files)
    if typed.get("tracking"):  # which adds keys of its own
        named = DEFAULT_EXP_MGMT_SETTINGS.get(typed["tracking"])
        settings: Mapping[str, Any] = named or read_config(typed["tracking"])
        config = {**settings.get("configs", {}), **config}
    overrides = read_file(typed["args_file"]) if "args_file" in typed else {}
    for key, text in typed.items():
        check_value(key, text)
    check_keys(config, [*overrides, *typed])
    given = {key: value for key, value in {**config, **overrides}.items() if key not in RUN_ARGUMENTS}
    check_texts(given, {key: text for key, text in typed.items() if key not in RUN_ARGUMENTS})
    check_settings({**given, **{key: DefaultParseValue(text) for key, text in typed.items()}})


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse plain values of a kind that a setting cannot have; what an expression gives is not known here.

    Args:
        config: as read, with overrides.

    Raises:
        InputError: naming the key, what was found and what was wanted.
    """
    for wanted, allowed, keys in _SETTINGS:
        for key in keys.split():
            value = config.get(key, "@")
            if not (isinstance(value, str) and value.startswith(("$", "@", "%"))) and not allowed(value):
                raise InputError(f"{key}: found {value!r}, wanted {wanted}, an expression or a reference")


def check_keys(config: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse keys that a configuration does not have.

    Args:
        config: as read.
        keys: of overrides, with ``#`` or ``::`` between levels; arguments of ``monai.bundle run`` itself pass.

    Raises:
        InputError: naming the key, and the closest known ones.
    """
    for key in keys:
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


def _config_files(typed: Mapping[str, str]) -> list[str]:
    """Return the configuration files that the options of a command line name, those that exist."""
    value: Any = typed.get("config_file")
    if value is None and os.path.isfile(typed.get("args_file", "")):
        value = read_file(typed["args_file"]).get("config_file")
    return config_files(value)
