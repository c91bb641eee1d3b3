# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Hosts: what the student learns from in one iteration of self-training.

A host turns source images, target images and pseudo-labels into a list of supervised terms; the engine sums their
losses. It does not know how the pseudo-labels were made: any host works with any pseudo-labeller. Some hosts stand on
another one, their ``base``, and add to its terms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

from dacal_med.engines.hosts.base import ExtraLoss, Host, LossTerm, pseudo_batch
from dacal_med.engines.hosts.dacs import DACS
from dacal_med.engines.hosts.daformer import DAFormer
from dacal_med.engines.hosts.mean_teacher import MeanTeacher
from dacal_med.engines.hosts.mic import MaskedConsistency
from dacal_med.engines.hosts.source_only import SourceOnly
from dacal_med.io.errors import InputError

__all__ = [
    "DACS",
    "HOSTS",
    "DAFormer",
    "ExtraLoss",
    "Host",
    "LossTerm",
    "MaskedConsistency",
    "MeanTeacher",
    "SourceOnly",
    "make_host",
    "pseudo_batch",
    "takes_option",
]

HOSTS: dict[str, type[Any]] = {
    "source_only": SourceOnly,
    "mean_teacher": MeanTeacher,
    "dacs": DACS,
    "daformer": DAFormer,
    "mic": MaskedConsistency,
}


def make_host(name: str, base: Host | Mapping[str, Any] | str | None = None, **options: Any) -> Host:
    """Return the host called ``name``.

    Args:
        name: one of :data:`HOSTS`.
        base: for a host that stands on another: that host, its name, or ``{"name": ..., **options}``; DACS by default.
        options: the host's own options, see its class. What the host does not have goes to the one below: with
            ``name="mic"``, ``complement="same"`` reaches the DACS under it, however deep, and over its own setting.

    Raises:
        InputError: for an unknown host or option; the message lists the known ones.
    """
    if name not in HOSTS:
        raise InputError(f"host: found {name!r}, wanted one of {sorted(HOSTS)}")
    kind = HOSTS[name]
    own = {key: value for key, value in options.items() if key in _options_of(kind)}
    below = {key: value for key, value in options.items() if key not in own}
    if "base" in _options_of(kind):
        own["base"] = _base(base, below)
    elif base is not None:
        raise InputError(f"host#base: found one, but {name!r} stands on no other host; wanted none")
    elif below:
        raise _unknown(kind, below)
    try:
        return kind(**own)
    except TypeError as error:
        raise InputError(f"host {name!r} does not take these options: {error}") from error


def takes_option(host: object, option: str) -> bool:
    """Return whether a host in a configuration, or one of those below it, has an option.

    Args:
        host: the value of ``"host"`` before it is built: a name, or ``{"name": ..., "base": ..., **options}``.
        option: e.g. ``"complement"``.

    Returns:
        Whether; true for anything whose options are not known, which then says so when it is built.
    """
    settings = {"name": host} if isinstance(host, str) else host
    if not isinstance(settings, Mapping) or settings.get("name") not in HOSTS:
        return True
    options = _options_of(HOSTS[settings["name"]])
    return option in options or ("base" in options and takes_option(settings.get("base") or "dacs", option))


def _base(base: Host | Mapping[str, Any] | str | None, options: Mapping[str, Any]) -> Host:
    """Return the host below another one, with the options that are meant for it."""
    if base is None:
        base = "dacs"
    if isinstance(base, str):
        return make_host(base, **options)
    if isinstance(base, Mapping):
        if "name" not in base:
            raise InputError(f"host#base: found keys {sorted(base)}, wanted 'name' among them")
        return make_host(**{**base, **options})
    return _with_options(base, options)


def _with_options(host: Host, options: Mapping[str, Any]) -> Host:
    """Return ``host`` with some options changed, its own or those of the hosts below it."""
    if not options:
        return host
    changes = {key: value for key, value in options.items() if key in _options_of(type(host))}
    below = {key: value for key, value in options.items() if key not in changes}
    if below and "base" not in _options_of(type(host)):
        raise _unknown(type(host), below)
    if below:
        changes["base"] = _with_options(host.base, below)  # type: ignore[attr-defined]
    return replace(host, **changes)  # type: ignore[type-var]


def _options_of(kind: type[Any]) -> list[str]:
    return [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else []


def _unknown(kind: type[Any], options: Mapping[str, Any]) -> InputError:
    name = next((name for name, known in HOSTS.items() if known is kind), kind.__name__)
    return InputError(
        f"host {name!r} does not take these options: found {sorted(options)}, wanted any of {sorted(_options_of(kind))}"
    )
