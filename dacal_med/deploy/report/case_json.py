# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The JSON of one case as the site's inference writes it, with the kind of everything in it that the report shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from dacal_med.deploy.runtime.trust_histograms import BINS
from dacal_med.io.errors import InputError
from dacal_med.kinds import is_number, is_whole

_KEYS = ("case", "status", "error", "warnings", "input", "model", "trust", "outputs")
_SHOWN = 100  # characters of a value in a message
_MOST = 2**53  # voxels: as many as a float counts
_NOTHING = object()
Test = Callable[[Any], bool]


def _whole(value: Any) -> bool:
    return is_whole(value, 0) and value <= _MOST


def _number(value: Any) -> bool:
    return _whole(value) or (isinstance(value, float) and is_number(value) and value >= 0)


def _share(value: Any) -> bool:
    return _number(value) and value <= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _or_null(test: Test) -> Test:
    return lambda value: value is None or test(value)


def _list_of(test: Test, *lengths: int) -> Test:
    return lambda value: isinstance(value, list) and all(map(test, value)) and len(value) in (lengths or [len(value)])


_SHARE = "a number from 0 to 1"
_TEXTS = "a list of text"
# Where ("*" for every name), what is wanted there, whether a value is that. What stands above comes first.
_OF_ALL: tuple[tuple[str, str, Test], ...] = (
    ("case", "text", _text),
    ("status", '"ok" or "failed"', ("ok", "failed").__contains__),
    ("error", "text or null", _or_null(lambda value: isinstance(value, str))),
    ("warnings", f"{_TEXTS} or null", _or_null(_list_of(lambda value: isinstance(value, str)))),
    ("model", "an object", _object),
    ("model#name", "text", _text),
    ("model#version", "text", _text),
    ("model#sha256", "text", _text),
    ("outputs", "an object", _object),
    ("outputs#segmentation", "the name of a file or null", _or_null(_text)),
    ("outputs#confidence", "the name of a file or null", _or_null(_text)),
)
_OF_GOOD: tuple[tuple[str, str, Test], ...] = (
    ("input", "an object", _object),
    ("input#shape", "two or three sizes", _list_of(_whole, 2, 3)),
    ("trust", "trust numbers, since the case succeeded", _object),
    ("trust#level", _SHARE, _share),
    ("trust#unit", "text", _text),
    ("trust#low_confidence_below", _SHARE, _share),
    ("trust#mean_expected_dice", f"{_SHARE} or null", _or_null(_share)),
    ("trust#low_confidence_share", f"{_SHARE} or null", _or_null(_share)),
    ("trust#confidence_histogram", "an object", _object),
    ("trust#confidence_histogram#foreground", f"{BINS} counts", _list_of(_whole, BINS)),
    ("trust#out_of_distribution", "an object", _object),
    ("trust#out_of_distribution#assessed", "true or false", _truth),
    ("trust#out_of_distribution#unusual", "true, false or null", _or_null(_truth)),
    ("trust#out_of_distribution#tests", "an object", _object),
    ("trust#out_of_distribution#tests#*", "an object", _object),
    ("trust#out_of_distribution#tests#*#unusual", "true or false", _truth),
    ("trust#classes", "an object", _object),
    ("trust#classes#*", "an object", _object),
    ("trust#classes#*#expected_dice", f"{_SHARE} or null", _or_null(_share)),
    ("trust#classes#*#expected_dice_interval", "two numbers from 0 to 1 or null", _or_null(_list_of(_share, 2))),
    ("trust#classes#*#expected_volume", "a number from 0", _number),
    ("trust#classes#*#expected_volume_interval", "two numbers from 0", _list_of(_number, 2)),
    ("trust#classes#*#low_confidence_share", f"{_SHARE} or null", _or_null(_share)),
    ("trust#classes#*#interval_from_cases", "a whole number", _whole),
)


def read_case(path: Path) -> dict[str, Any]:
    """Read the JSON of one case.

    Args:
        path: the file.

    Raises:
        InputError: it cannot be read, or something that the report shows is missing or of another kind.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    # A number of thousands of digits is a ValueError, lists in lists in lists are a RecursionError.
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    missing = [key for key in _KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise InputError(
            f"{path}: found no {', '.join(missing)}; wanted the JSON of a case, as the inference writes it"
        )
    for key, wanted, allowed in chain(_OF_ALL, _OF_GOOD if content["status"] == "ok" else ()):
        for place, value in _at(content, key.split("#")):
            if not allowed(value):
                raise InputError(f"{path}: found {_shown(value)} for {place}, wanted {wanted}")
    if content["status"] == "ok":
        _check_classes(path, content["trust"])
    return {**content, "warnings": content["warnings"] or []}


def _at(content: Mapping[str, Any], parts: list[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value at a place, with its name; ``_NOTHING`` where there is none. What is above is an object."""
    first, *rest = parts
    for name, value in content.items() if first == "*" else [(first, content.get(first, _NOTHING))]:
        place = f"{above}#{name}" if above else name
        yield from _at(value, rest, place) if rest else repeat((place, value), 1)


def _check_classes(path: Path, trust: Mapping[str, Any]) -> None:
    names, background = trust.get("class_names"), trust.get("background", _NOTHING)
    if _list_of(_text)(names) and (background is None or (_whole(background) and background < len(names or []))):
        wanted = [name for k, name in enumerate(names or []) if k != background]
        if list(trust["classes"]) == wanted:
            return
    raise InputError(
        f"{path}: found trust numbers with the class_names {_shown(names)} and the background {_shown(background)}; "
        "wanted the names by number and which of them is no structure, as the inference writes them"
    )


def _shown(value: Any) -> str:
    text = "nothing" if value is _NOTHING else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
