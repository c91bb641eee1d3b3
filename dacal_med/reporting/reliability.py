# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Reliability plots: one diagram with counts, several overlaid, and the histogram over a whole dataset.

Reliability diagrams are Niculescu-Mizil & Caruana (ICML 2005) as drawn by Guo et al. (ICML 2017); the dataset
reliability histogram, which shows how the curve varies from case to case, follows Barfoot et al. (MICCAI 2024, arXiv
2403.06759).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from dacal_med.core.scores import ReliabilityTable

# Okabe & Ito: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
_NEGLIGIBLE = 1e-4  # a bin with a smaller share of the voxels says nothing about reliability
_OVERLAY = (RED, BLUE, GREEN, ORANGE, "#CC79A7", "#56B4E9", "#000000")


def reliability_diagram(table: ReliabilityTable, title: str = "Reliability") -> Figure:
    """Draw accuracy against confidence by bin, with the number of voxels of each bin below.

    Args:
        table: one row per bin of confidence.
        title: above the diagram.

    Returns:
        A figure of its own, in no global state.
    """
    # Fixed margins: there is one diagram for each class, and solving a layout takes longer than drawing it.
    figure, axes, counts = _two_panels(title, layout=None)
    figure.subplots_adjust(left=0.14, right=0.96, bottom=0.09, top=0.93, hspace=0.06)
    lower, width = _numpy(table.lower), _numpy(table.upper) - _numpy(table.lower)
    accuracy, confidence = _numpy(table.accuracy), _numpy(table.confidence)
    filled = _numpy(table.count) > 0
    axes.bar(
        lower[filled], accuracy[filled], width[filled], align="edge", color=BLUE, edgecolor="white", label="accuracy"
    )
    for k in np.flatnonzero(filled):
        bottom, height = min(accuracy[k], confidence[k]), abs(accuracy[k] - confidence[k])
        label = "gap" if k == np.flatnonzero(filled)[0] else None
        axes.bar(
            lower[k],
            height,
            width[k],
            bottom=bottom,
            align="edge",
            color="none",
            edgecolor=RED,
            hatch="////",
            linewidth=0.5,
            label=label,
        )
    axes.legend(loc="upper left", frameon=False)
    axes.text(
        0.97,
        0.04,
        f"ECE {_percent(table.ece())}\nN = {int(table.count.sum()):,}",
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )
    _count_bars(counts, table, GREY)
    return figure


def reliability_overlay(tables: Mapping[str, ReliabilityTable], title: str = "Reliability") -> Figure:
    """Draw several reliability curves over each other, with their counts below.

    Bins with less than one voxel in ten thousand are left out of the curves; they count in the ECE.

    Args:
        tables: by name, e.g. ``{"before": ..., "after": ...}``.
        title: above the diagram.

    Returns:
        A figure.

    Raises:
        ValueError: if there is no table.
    """
    if not tables:
        raise ValueError("tables: found none, wanted at least one")
    figure, axes, counts = _two_panels(title)
    for (name, table), colour in zip(tables.items(), _cycle(len(tables)), strict=True):
        filled = _numpy(table.count) > _NEGLIGIBLE * float(table.count.sum())
        label = f"{name} (ECE {_percent(table.ece())})"
        axes.plot(
            _numpy(table.confidence)[filled],
            _numpy(table.accuracy)[filled],
            "o-",
            color=colour,
            markersize=4,
            label=label,
        )
        edges = np.append(_numpy(table.lower), _numpy(table.upper)[-1])
        counts.stairs(np.maximum(_numpy(table.count), 0.5), edges, color=colour, linewidth=1.5)
    axes.legend(loc="upper left", frameon=False)
    counts.set_yscale("log")
    counts.set_ylim(bottom=0.5)
    return figure


def reliability_histogram(tables: Sequence[ReliabilityTable], title: str = "Dataset reliability") -> Figure:
    """Draw the curves of all cases: how the accuracy at one confidence varies over a dataset.

    Args:
        tables: one per case, with the same bins.
        title: above the diagram.

    Returns:
        A figure: in each bin of confidence the distribution of the cases' accuracy (shade), each case's curve (thin)
        and the median over cases (thick).

    Raises:
        ValueError: if there is no case.
    """
    if not tables:
        raise ValueError("tables: found no case, wanted at least one")
    figure, axes, counts = _two_panels(f"{title} ({len(tables)} case{'s' if len(tables) > 1 else ''})")
    accuracy = np.stack([_numpy(t.accuracy) for t in tables])
    edges = np.append(_numpy(tables[0].lower), _numpy(tables[0].upper)[-1])
    centres = (edges[:-1] + edges[1:]) / 2
    levels = np.linspace(0.0, 1.0, 21)
    share = np.zeros((len(levels) - 1, len(centres)))
    for k in range(len(centres)):
        values = accuracy[:, k][~np.isnan(accuracy[:, k])]
        if values.size:
            share[:, k] = np.histogram(values, levels)[0] / values.size
    mesh = axes.pcolormesh(edges, levels, np.ma.masked_equal(share, 0.0), cmap="Blues", norm=LogNorm(0.02, 1.0))
    bar = figure.colorbar(mesh, ax=axes, fraction=0.046, pad=0.02)
    bar.set_label("share of cases")
    for row in accuracy:
        axes.plot(centres, row, color=GREY, linewidth=0.6, alpha=0.6)
    present = ~np.isnan(accuracy).all(axis=0)
    median = np.nanmedian(accuracy[:, present], axis=0)
    axes.plot(centres[present], median, "o-", color=RED, markersize=4, linewidth=2, label="median over cases")
    axes.legend(loc="upper left", frameon=False)
    counts.bar(
        edges[:-1],
        np.sum([_numpy(t.count) for t in tables], axis=0),
        np.diff(edges),
        align="edge",
        color=GREY,
        edgecolor="white",
    )
    counts.set_yscale("log")
    counts.set_ylim(bottom=0.5)
    return figure


def _two_panels(title: str, layout: Literal["constrained"] | None = "constrained") -> tuple[Figure, Axes, Axes]:
    figure = Figure(figsize=(5.2, 5.6), layout=layout)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    axes.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=title)
    counts.set(xlabel="confidence", ylabel="voxels")
    return figure, axes, counts


def _count_bars(axes: Axes, table: ReliabilityTable, colour: str) -> None:
    lower, upper = _numpy(table.lower), _numpy(table.upper)
    axes.bar(lower, _numpy(table.count), upper - lower, align="edge", color=colour, edgecolor="white")
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)


def _cycle(count: int) -> list[str]:
    return [_OVERLAY[k % len(_OVERLAY)] for k in range(count)]


def _percent(value: float) -> str:
    return "—" if np.isnan(value) else f"{100 * value:.2f} %"


def _numpy(values: object) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)
