# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The two pictures of a comparison: reliability curves over each other, and Dice against calibration error."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dacal_med.comparison.aggregate import table_order
from dacal_med.core.scores import ReliabilityTable
from dacal_med.reporting.reliability import BLUE, GREEN, GREY, ORANGE, RED, reliability_overlay
from dacal_med.reporting.tables import repeats

MAX_CURVES = 7
"""Colours of :func:`dacal_med.reporting.reliability.reliability_overlay`."""

_COLOURS = (RED, BLUE, GREEN, ORANGE, "#CC79A7", "#56B4E9", "#000000", "#8C564B", GREY, "#332288")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
_PANELS = (("foreground_ece", "foreground ECE"), ("ece", "ECE"))


def label(entry: Mapping[str, Any]) -> str:
    """Return how a method is called where it stands alone."""
    return f"{entry['title']} (oracle)" if entry["oracle"] else str(entry["title"])


def reliability_title(result: Mapping[str, Any]) -> str:
    """Return what the reliability curves are of: the foreground, which is everything where no class is background."""
    return "Reliability" if result["background"] is None else "Reliability in the foreground"


def reliability_curves(result: Mapping[str, Any]) -> list[str]:
    """Return the names of the methods whose curves are shown, in the order of the tables.

    Of more than :data:`MAX_CURVES` with results those come first which are the reference, then those that calibrators
    sit on, the other trained methods, post-hoc calibrators and oracles, each group by rising foreground ECE.
    """
    methods = result["methods"]
    bases = {entry["base"] for entry in methods.values()}

    def rank(name: str) -> tuple[bool, bool, bool, bool, float]:
        entry = methods[name]
        error = entry["mean"].get("foreground_ece")
        return (
            name != result["reference"],
            entry["oracle"],
            entry["base"] is not None,
            name not in bases,
            math.inf if error is None else error,
        )

    shown = sorted((name for name, entry in methods.items() if entry["seeds"]), key=rank)[:MAX_CURVES]
    return [name for name in table_order(result) if name in shown]


def reliability_overlay_of(tables: Mapping[str, ReliabilityTable], result: Mapping[str, Any]) -> Figure:
    """Draw the reliability curves of :func:`reliability_curves` with the legend beside them.

    Args:
        tables: of the foreground, by method, as of :func:`dacal_med.comparison.aggregate.pooled_tables`.
        result: of :func:`dacal_med.comparison.aggregate.collect`.

    Raises:
        ValueError: if no method has results.
    """
    figure = reliability_overlay(
        {label(result["methods"][name]): tables[name] for name in reliability_curves(result)},
        reliability_title(result),
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    drawn = figure.axes[0].get_legend()
    assert drawn is not None
    drawn.remove()
    figure.set_size_inches(10.5, 5.6)
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def dice_against_ece(result: Mapping[str, Any]) -> Figure:
    """Draw Dice against foreground ECE and against ECE: means large with their spread, seeds small and faint.

    Where no class is background the two are one. A calibrator has the colour of the method it sits on and a marker of
    its own; oracles are hollow.

    Args:
        result: of :func:`dacal_med.comparison.aggregate.collect`.
    """
    shown = [panel for panel in _PANELS if not repeats(panel[0], result["background"] is not None)]
    figure = Figure(figsize=(3.5 + 6 * len(shown), 5.6), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    styles = _styles(result)
    handles = []
    for name in table_order(result):
        entry = result["methods"][name]
        colour, marker = styles[name]
        face = "white" if entry["oracle"] else colour
        drawn = [_draw(axes, entry, score, colour, marker) for axes, (score, _) in zip(panels, shown, strict=True)]
        if any(drawn):
            handles.append(
                Line2D([], [], color=colour, marker=marker, markerfacecolor=face, linestyle="none", label=label(entry))
            )
    for axes, (_, title) in zip(panels, shown, strict=True):
        axes.set(xlabel="Dice (right is better)", ylabel=f"{title} (down is better)", title=f"Dice and {title}")
        axes.set_ylim(bottom=0.0)
        axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize="small")
    return figure


def _styles(result: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each method: no two methods have both in common."""
    methods = result["methods"]
    order = table_order(result)
    # Families with several members come first, so that they get the colours easiest to tell apart.
    bases = [methods[name]["base"] for name in order if methods[name]["base"] is not None]
    families = list(dict.fromkeys([*bases, *(methods[name]["base"] or name for name in order)]))
    used: dict[str, int] = {}
    styles = {}
    for name in order:
        colour = _COLOURS[families.index(methods[name]["base"] or name) % len(_COLOURS)]
        styles[name] = (colour, _MARKERS[used.get(colour, 0) % len(_MARKERS)])
        used[colour] = used.get(colour, 0) + 1
    return styles


def _draw(axes: Axes, entry: Mapping[str, Any], score: str, colour: str, marker: str) -> bool:
    """Draw one method; returns whether it has both scores."""
    centre, spread = entry["mean"] or {}, entry["std"] or {}
    if centre.get("dice") is None or centre.get(score) is None:
        return False
    face = "white" if entry["oracle"] else colour
    for scores in entry["seeds"].values():
        if scores.get("dice") is not None and scores.get(score) is not None:
            axes.plot(
                scores["dice"], scores[score], marker, color=colour, markerfacecolor=face, markersize=3.5, alpha=0.35
            )
    axes.errorbar(
        centre["dice"],
        centre[score],
        xerr=spread.get("dice"),
        yerr=spread.get(score),
        fmt="none",
        ecolor=colour,
        elinewidth=1,
        alpha=0.5,
    )
    axes.plot(centre["dice"], centre[score], marker, color=colour, markerfacecolor=face, markersize=8, zorder=3)
    return True
