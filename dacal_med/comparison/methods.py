# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The methods of a comparison by name: each a few keys of the same bundle configuration.

Trained methods differ in what the student learns from and in nothing else. A post-hoc calibrator is named after the
trained method it sits on, ``<method>+<calibrator>``, and trains nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from dacal_med.engines.hosts import takes_option
from dacal_med.io.errors import InputError

HOST = "dacal_med.engines.make_host"
COMPLEMENT = "host#complement"  # on a host that stands on another, that of the host below
FOLDS = 2

_TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "source_only": ("source only", {"host": {"_target_": HOST, "name": "source_only"}}),
    "hard": ("hard labels", {"labeller#name": "hard", COMPLEMENT: "none"}),
    "soft": ("soft labels, T = 1", {"labeller#name": "soft", COMPLEMENT: "none"}),
    "hard_both": ("hard labels, both mixes", {"labeller#name": "hard", COMPLEMENT: "hard"}),
    "soft_both": ("soft labels, T = 1, both mixes", {"labeller#name": "soft", COMPLEMENT: "same"}),
    "dacal": ("DA-Cal", {}),
    "dacal_open": ("DA-Cal, no feedback", {"feedback": None}),
    "target_oracle": (
        f"trained on target labels, {FOLDS} folds",
        {"host": {"_target_": HOST, "name": "source_only"}, "held_out_share": 0.0},
    ),
}
_FIXED = {"fixed_both_": ("same", ", both mixes"), "fixed_": ("none", "")}
CALIBRATORS = {
    "ts": "temperature scaling, held-out source",
    "vs": "vector scaling, held-out source",
    "lts": "local temperature scaling, held-out source",
    "pseudocal": "PseudoCal, mixed target images",
    "ts_oracle": "temperature scaling, target labels",
}
ORACLES = frozenset({"target_oracle", "ts_oracle"})
DEFAULTS = (
    *("source_only", "hard", "soft", "fixed_0.5", "fixed_1.5", "fixed_2", "hard_both", "soft_both", "dacal"),
    *(f"{base}+{name}" for base in ("hard_both", "dacal") for name in CALIBRATORS),
    "target_oracle",
)
"""What is compared when nothing is named."""


@dataclass(frozen=True)
class Method:
    """One row of a comparison.

    Attributes:
        name: as on the command line, and of its folder.
        title: as in tables; that of a post-hoc calibrator is ``"<title of its base> + <calibrator>"``, which is
            shortened where it stands under its base.
        overrides: keys of the bundle's configuration that make the method.
        base: the trained method that a post-hoc calibrator sits on, ``None`` for trained methods.
        calibrator: the post-hoc calibrator, a key of :data:`CALIBRATORS`.
        oracle: whether it sees target labels, so that it bounds the others and does not compete.
    """

    name: str
    title: str
    overrides: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    calibrator: str | None = None
    oracle: bool = False


def find_method(name: str) -> Method:
    """Return the method called ``name``.

    Args:
        name: ``source_only``, ``hard``, ``soft``, ``fixed_<T>``, ``hard_both``, ``soft_both``, ``fixed_both_<T>``,
            ``dacal`` (the configuration as it is), ``dacal_open`` (without its feedback), ``target_oracle``, or ``<one
            of these>+<calibrator>``.

    Raises:
        InputError: for another name; the message lists the known ones.
    """
    base, plus, calibrator = name.partition("+")
    if plus:
        if calibrator not in CALIBRATORS or base == "target_oracle":
            raise InputError(f"--methods: found {name!r}, wanted <method>+ one of {list(CALIBRATORS)}; {_known()}")
        below = find_method(base)
        title = f"{below.title} + {CALIBRATORS[calibrator]}"
        return Method(name, title, below.overrides, base, calibrator, calibrator in ORACLES)
    if name in _TRAINED:
        title, overrides = _TRAINED[name]
        return Method(name, title, dict(overrides), oracle=name in ORACLES)
    for prefix, (complement, suffix) in _FIXED.items():
        temperature = _positive(name.removeprefix(prefix)) if name.startswith(prefix) else None
        if temperature is not None:
            overrides = {
                "labeller#name": "fixed",
                "labeller#fixed_temperature": temperature,
                COMPLEMENT: complement,
            }
            return Method(name, f"soft labels, T = {temperature:g}{suffix}", overrides)
    raise InputError(f"--methods: found {name!r}; {_known()}")


def find_methods(names: Sequence[str]) -> list[Method]:
    """Return the methods called ``names`` in that order, each calibrator after the method it sits on.

    The trained methods that calibrators need are added, and repeated names are dropped.

    Raises:
        InputError: for an unknown name, or if there is none.
    """
    if not names:
        raise InputError(f"--methods: found none; {_known()}")
    methods: dict[str, Method] = {}
    for name in names:
        method = find_method(name)
        if method.base is not None:
            methods.setdefault(method.base, find_method(method.base))
        methods.setdefault(name, method)
    return list(methods.values())


def fit_to_host(methods: Sequence[Method], host: object) -> list[Method]:
    """Return the methods as they are on the host of a configuration.

    On a host that does not mix, or mixes once only, there is no complementary mix to leave out.

    Args:
        methods: of :func:`find_methods`.
        host: the value of ``"host"`` in the configuration.

    Raises:
        InputError: for a method that needs the complementary mix on such a host.
    """
    if takes_option(host, "complement"):
        return list(methods)
    for method in methods:
        if method.overrides.get(COMPLEMENT, "none") != "none":
            raise InputError(f"--methods: {method.name!r} needs a host with a complementary mix, found {host}")
    return [
        replace(method, overrides={key: value for key, value in method.overrides.items() if key != COMPLEMENT})
        for method in methods
    ]


def _positive(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 < value < math.inf else None


def _known() -> str:
    return (
        f"known are {', '.join(_TRAINED)}, fixed_<T>, fixed_both_<T>, and any but target_oracle with "
        f"{', '.join('+' + name for name in CALIBRATORS)}"
    )
