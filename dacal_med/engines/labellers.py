# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Pseudo-labellers and what trains them by name, so that a comparison changes one line; what their maps look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dacal_med.core.bilevel import BilevelStep
from dacal_med.core.pseudo_labels import FixedTemperature, HardLabels, LearnedTemperature, PseudoLabeller, SoftLabels
from dacal_med.core.temperature import MetaTemperatureNetwork
from dacal_med.engines.meta import TemperatureLearner
from dacal_med.engines.objectives import MetaObjective
from dacal_med.engines.parallel import average
from dacal_med.io.errors import InputError

LABELLERS = ("hard", "soft", "fixed", "learned")


def make_labeller(
    name: str,
    num_classes: int,
    in_channels: int,
    spatial_dims: int,
    threshold: float = 0.968,
    weighting: str = "quality",
    fixed_temperature: float = 2.0,
    temperature_network: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    ignore_top: int = 0,
    ignore_bottom: int = 0,
) -> PseudoLabeller:
    """Return the pseudo-labeller called ``name``.

    Args:
        name: ``"hard"``, ``"soft"`` (T = 1), ``"fixed"`` (one T for all voxels) or ``"learned"`` (a Meta Temperature
            Network).
        num_classes: number of classes.
        in_channels: image channels.
        spatial_dims: 2 or 3.
        threshold: confidence above which a voxel counts for the quality weight (DACS: 0.968).
        weighting: ``"quality"``, ``"confidence"`` or ``"none"``, see :class:`PseudoLabeller`.
        fixed_temperature: T of ``"fixed"``.
        temperature_network: options of :class:`MetaTemperatureNetwork` for ``"learned"``.
        device: where the labeller computes.
        ignore_top: rows of pseudo-labels at the top of every crop that weigh 0, see :class:`PseudoLabeller`.
        ignore_bottom: the same at the bottom.

    Raises:
        InputError: for an unknown name or a negative number of rows.
    """
    options: dict[str, Any] = {
        "threshold": threshold,
        "weighting": weighting,
        "ignore_top": ignore_top,
        "ignore_bottom": ignore_bottom,
    }
    labeller: PseudoLabeller
    if name == "hard":
        labeller = HardLabels(**options)
    elif name == "soft":
        labeller = SoftLabels(**options)
    elif name == "fixed":
        labeller = FixedTemperature(temperature=fixed_temperature, **options)
    elif name == "learned":
        network = MetaTemperatureNetwork(num_classes, in_channels, spatial_dims, **(temperature_network or {}))
        labeller = LearnedTemperature(network, **options)
    else:
        raise InputError(f"labeller: found {name!r}, wanted one of {list(LABELLERS)}")
    return labeller.to(device)


def make_temperature_learner(
    labeller: PseudoLabeller,
    network: nn.Module,
    optimizer: Optimizer,
    objective: MetaObjective | None = None,
    learning_rate: float = 1e-3,
    look_ahead: str = "all",
    method: str = "auto",
    step_size: float | None = None,
    every: int = 4,
    start: int = 0,
    prior: float = 0.1,
    prior_temperature: float = 1.0,
    balance: str = "none",
) -> TemperatureLearner | None:
    """Return what trains ``labeller``, or ``None`` for labellers that learn nothing.

    Args:
        labeller: the pseudo-labeller.
        network: the student.
        optimizer: the student's optimizer, whose preconditioner the look-ahead step uses.
        objective: outer data and loss; held-out truth on the complementary mix by default.
        learning_rate: of the Meta Temperature Network (Adam).
        look_ahead: ``"all"`` parameters take the look-ahead step, or a prefix of the names of those that do.
        method: how the meta-gradient is computed, see :class:`BilevelStep`.
        step_size: of the look-ahead step; ``None`` uses the student's learning rate.
        every: see :class:`TemperatureLearner`, as the following.
        start: first iteration of self-training with a meta-step and learned labels; hard ones before.
        prior: weight of the prior on ``log T``.
        prior_temperature: where the prior is centred at the start.
        balance: whether classes weigh the same.
    """
    if not isinstance(labeller, LearnedTemperature):
        return None
    parameters: str | Callable[[str], bool] = "all"
    if look_ahead != "all":
        parameters = lambda name: name.startswith(look_ahead)  # noqa: E731
    step = BilevelStep(network, optimizer, step_size=step_size, method=method, parameters=parameters, average=average)
    meta_optimizer = torch.optim.Adam(labeller.network.parameters(), lr=learning_rate)
    return TemperatureLearner(
        labeller, meta_optimizer, step, objective, every, start, prior, prior_temperature, balance
    )


def temperature_statistics(temperature: Tensor | None, labeller: PseudoLabeller) -> dict[str, float]:
    """Summarise a temperature map ``(B, 1, *spatial)``.

    Args:
        temperature: the map, or ``None`` for labellers without one.
        labeller: its bounds, if it learns a temperature, decide ``at_bounds``.

    Returns:
        ``mean``, ``min``, ``max`` and ``at_bounds`` (share of voxels within 1 % of a bound); empty without a map.
    """
    if temperature is None:
        return {}
    statistics = {
        "mean": float(temperature.mean()),
        "min": float(temperature.min()),
        "max": float(temperature.max()),
    }
    if isinstance(labeller, LearnedTemperature):
        low, high = labeller.bounds
        at_bounds = (temperature <= low * 1.01) | (temperature >= high * 0.99)
        statistics["at_bounds"] = float(at_bounds.float().mean())
    return statistics
