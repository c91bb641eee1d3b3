# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What the networks of dacal_med are called at a site, which has their code in ``dacal_site`` and no training code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pydoc import locate
from typing import Any

from dacal_med.engines.hrda import HRDA
from dacal_med.networks import segmentation_network


@dataclass(frozen=True)
class _Counterpart:
    """What a site has in place of something that trains.

    Attributes:
        target: under the name of the exported code, with the same parameters.
        training: arguments that say how to train, which it lacks.
    """

    target: str
    training: tuple[str, ...]


_COUNTERPARTS: dict[Callable[..., Any], _Counterpart] = {
    segmentation_network: _Counterpart("dacal_site.networks.segmentation_network", ("weights",)),
    HRDA: _Counterpart("dacal_site.networks.MultiResolution", ("detail_weight",)),
}


def at_a_site(definition: Any) -> Any:
    """Return a ``network_def`` in which what dacal_med builds is built by the code that an exported folder has.

    What has no counterpart there stays, for :func:`~dacal_med.deploy.export.deployed.build_network` to refuse.

    Args:
        definition: a part of a configuration.
    """
    if isinstance(definition, list):
        return [at_a_site(value) for value in definition]
    if not isinstance(definition, Mapping):
        return definition
    result = {key: at_a_site(value) for key, value in definition.items()}
    target = result.get("_target_")
    if isinstance(target, str) and target.startswith("dacal_med."):
        counterpart = _COUNTERPARTS.get(locate(target))  # type: ignore[call-overload]
        if counterpart is not None:
            for key in counterpart.training:
                result.pop(key, None)
            result["_target_"] = counterpart.target
    return result
