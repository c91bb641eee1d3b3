# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a command line of ``monai.bundle run`` says, and whether Fire and MONAI leave its texts as they were typed.

Fire reads every value as Python where it can (``2024`` is a number, ``a,b`` two names, what follows ``#`` a comment, a
bare name is changed to its NFKC form), and MONAI then writes ``::`` for ``#`` in every text of a configuration. A path
that is changed so is another path, and maybe another folder, so it is refused, or handed on by :func:`literal`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fire.parser import DefaultParseValue

from dacal_med.io.errors import InputError

# Last parts of the keys whose values are paths.
PATHS = frozenset(
    {
        *("bundle_root", "output_dir", "ckpt_dir", "model_file", "dataset_dir", "cache_dir", "checked", "fork_from"),
        *("resume", "folder", "checkpoint", "encoder_weights", "weights"),
    }
)
# Those that are read with `~` as somebody's home.
_HOMES = frozenset({"dataset_dir", "encoder_weights", "weights"})
_FLAG = re.compile(r"--|-[a-zA-Z]")
_LOOKED_UP = re.compile(r"[$%].*|@(#|::)*\w*((#|::)\w*)*", re.DOTALL)
_CHANGED = re.compile(r"#|[@%]::")


def options(argv: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line by name as Fire assigns them, their texts as typed.

    Args:
        argv: without the program. A word that follows no option, or another option's value, is left out.

    Returns:
        The last text of each option, ``"True"`` where none follows; ``-`` in names becomes ``_``.
    """
    found: dict[str, str] = {}
    for word, following in zip(argv, [*argv, "-"][1:], strict=True):
        if _FLAG.match(word):
            name, equals, text = word.lstrip("-").partition("=")
            if not equals:
                text = "True" if following == "-" or _FLAG.match(following) else following
            found[name.replace("-", "_")] = text
    return found


def config_files(value: object) -> list[str]:
    """Return the configuration files of a ``config_file`` that exist.

    Args:
        value: as typed, or as an ``args_file`` has it.
    """
    parsed = DefaultParseValue(value) if isinstance(value, str) else value
    files = parsed if isinstance(parsed, list | tuple) else [parsed]
    return [file for file in files if isinstance(file, str) and os.path.isfile(file)]


def literal(path: str | Path) -> str:
    """Return the text that ``monai.bundle run`` reads as a path, on its command line and in a configuration.

    Args:
        path: of a file or folder.

    Returns:
        The path, or, where it would be changed or looked up, an expression that evaluates to it.
    """
    text = str(path)
    if _stays(text):
        return text
    return f'$"{"".join(map(_escaped, text))}"'


def as_typed(key: str, value: str | Path) -> str:
    """Return the path of an option as it was typed, where this process is a ``monai.bundle run`` that was given it.

    Args:
        key: of the configuration.
        value: what the configuration holds, which is returned where nothing was typed, or an expression or reference.

    Raises:
        InputError: for an option without a path, and for one of a file of arguments or a configuration that held ``#``.
    """
    typed = options(sys.argv[1:]) if os.path.join("monai", "bundle") in sys.argv[0] else {}
    text = typed.get(key)
    if text == "True":
        raise InputError(f"--{key}: found no path after it, or True; wanted one, such as ./True")
    if text is not None and not _LOOKED_UP.fullmatch(text):
        return os.path.expanduser(text)
    value = str(value)
    if "::" in value:
        raise InputError(f"{key}: found {value!r}, as MONAI changes '#' in a file's texts; wanted a path without them")
    return value


def check_texts(config: Mapping[str, Any], typed: Mapping[str, str]) -> None:
    """Refuse texts that ``monai.bundle run`` would change without a word.

    Args:
        config: as the files have it, by key.
        typed: options of the command line, their texts as typed.

    Raises:
        InputError: naming the key, the text, what it would become, and what to write.
    """
    for key, text in typed.items():
        if _LOOKED_UP.fullmatch(text):
            continue
        made = DefaultParseValue(text)
        switch = _last(key) == "resume" and isinstance(made, bool)
        if _last(key) in PATHS and not switch:
            changed = not _stays(text)
        elif isinstance(made, list | tuple | dict):
            changed = any(map(_changes, (below for _, below in _texts(key, made))))
        else:
            changed = _changes(text)
        if changed:
            made = made.replace("#", "::") if isinstance(made, str) else made
            raise InputError(f"--{key}: found {text!r}, which monai.bundle reads as {made!r}; wanted {_way(key, text)}")
        _check_home(key, text, f"--{key}")
    for key, text in _texts("", {key: value for key, value in config.items() if key not in typed}):
        if _changes(text):
            raise InputError(
                f"{key}: found {text!r} in a file, where MONAI writes '::' for '#'; "
                f"wanted {json.dumps(literal(text), ensure_ascii=False)}, or a text without '#'"
            )
        _check_home(key, text, key)


def _way(key: str, text: str) -> str:
    """What to type for a text that would be changed."""
    if _last(key) in PATHS and _stays(f"./{text}"):
        return f"--{key} {shlex.quote(f'./{text}')}"
    return f"--{key} {shlex.quote(literal(text))}, or a name without '#'"


def _check_home(key: str, text: str, shown: str) -> None:
    if _last(key) in PATHS - _HOMES and text.startswith("~"):
        home = os.path.expanduser(text)
        wanted = home if home != text else f"./{text}"
        raise InputError(f"{shown}: found {text!r}, in which nothing stands for a home; wanted {wanted!r}")


def _last(key: str) -> str:
    return key.replace("::", "#").rpartition("#")[2]


def _stays(text: str) -> bool:
    """Whether Fire and MONAI leave a text as it is, and look nothing up for it."""
    return not _LOOKED_UP.fullmatch(text) and not _changes(text) and DefaultParseValue(text) == text


def _changes(text: str) -> bool:
    """Whether MONAI changes a text of a configuration."""
    return bool(_CHANGED.search(text)) and not _LOOKED_UP.fullmatch(text)


def _texts(key: str, value: object) -> Iterator[tuple[str, str]]:
    """Yield each text in a value with the key that it lies under; notes to readers (``_desc_``) are left out."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            if not name.startswith("_"):
                yield from _texts(f"{key}#{name}" if key else name, below)
    elif isinstance(value, list | tuple):
        for position, below in enumerate(value):
            yield from _texts(f"{key}#{position}", below)


def _escaped(character: str) -> str:
    """A character in an expression of a configuration, in which MONAI looks for ``@``, ``#`` and ``%``."""
    if character.isprintable() and character not in '\\"#@%:':
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
