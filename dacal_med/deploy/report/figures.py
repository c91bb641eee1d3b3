# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures of the report as data URIs, so that the page needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional

from dacal_med.deploy.report.scans import Scan
from dacal_med.deploy.runtime.trust import LOW_CONFIDENCE
from dacal_med.reporting.panels import image_panel
from dacal_med.reporting.reliability import BLUE, GREY

_DPI = 100
# Text stays text, and the same figure is the same file.
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "site report", "font.family": "sans-serif"}


def svg_uri(figure: Figure) -> str:
    """Return a figure as an SVG data URI."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(_SVG):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()


def png_uri(figure: Figure) -> str:
    """Return a figure as a PNG data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def confidence_figure(histograms: Mapping[str, Sequence[int]], title: str, cells: str = "voxels") -> Figure:
    """Draw how confident the model is where it finds a structure: each case's histogram and their median.

    Args:
        histograms: voxels by bin of confidence, by case; cases without voxels are left out.
        title: above the figure.
        cells: what is counted.

    Returns:
        A figure: one thin line a case, the median thick.

    Raises:
        ValueError: if no case has voxels.
    """
    counts = np.array([counts for counts in histograms.values() if sum(counts)], dtype=np.float64)
    if not counts.size:
        raise ValueError("histograms: found no voxel, wanted some")
    shares = counts / counts.sum(axis=1, keepdims=True)
    edges = np.linspace(0.0, 1.0, shares.shape[1] + 1)
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for row in shares:
        axes.stairs(row, edges, color=GREY, linewidth=0.6, alpha=0.7)
    axes.stairs(np.median(shares, axis=0), edges, color=BLUE, linewidth=2.2, label="median over cases")
    axes.axvline(
        LOW_CONFIDENCE, color="black", linestyle=":", linewidth=1, label=f"low confidence below {LOW_CONFIDENCE}"
    )
    first = int(np.flatnonzero(counts.sum(axis=0))[0])
    axes.set(xlim=(edges[max(0, first - 1)], 1.0), xlabel="confidence", ylabel=f"share of {cells}", title=title)
    axes.set_yscale("log")
    axes.set_ylim(bottom=1e-4)
    # Below the axes, where no line can run through it.
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def shown_slices(scan: Scan, background: int | None = 0) -> dict[str, int]:
    """Return which slices of a volume are shown, by what they are; a picture has the only one.

    Args:
        scan: the case.
        background: class that is no structure; ``None`` where every class is one.

    Returns:
        ``{"largest": ..., "most doubtful": ...}``: the slice with the most of all structures, and that with the most
        voxels of low confidence if it is another one.
    """
    if scan.segmentation.ndim == 2:
        return {"Whole picture": -1}
    found = scan.segmentation != (-1 if background is None else background)
    if scan.label is not None:
        found = found | ((scan.label != background) & (scan.label != 255))
    largest = int(found.sum(axis=(0, 1)).argmax())
    doubt = (scan.confidence < LOW_CONFIDENCE).sum(axis=(0, 1))
    worst = int(doubt.argmax())
    result = {"largest": largest}
    if doubt[worst] and worst != largest:
        result["most doubtful"] = worst
    return result


def slice_figure(scan: Scan, position: int, class_names: Sequence[str], background: int | None = 0) -> Figure:
    """Draw one slice: image and truth where they are at hand, prediction, confidence, errors.

    Args:
        scan: the case.
        position: along the last axis; -1 of a picture.
        class_names: names by class, all of them.
        background: class that is not drawn; ``None`` where every class is.
    """
    parts: dict[str, Any] = {"prediction": scan.segmentation, "confidence": scan.confidence}
    if scan.image is not None:
        low, high = np.percentile(scan.image, [1, 99])
        parts["image"] = np.clip(scan.image, low, max(high, low + 1e-6))
    if scan.label is not None:
        parts["label"] = scan.label
    flat: dict[str, Any] = {
        name: _square(torch.from_numpy(np.ascontiguousarray(a if a.ndim == 2 else a[..., position])), scan.spacing)
        for name, a in parts.items()
    }
    if "label" in flat:
        flat["error"] = (flat["prediction"] != flat["label"]) & (flat["label"] != 255)
    image = flat.pop("image", None)
    return image_panel(image, class_names=class_names, columns=5, size=2.1, background=background, **flat)


def _square(values: Tensor, spacing: Sequence[float]) -> Tensor:
    """Repeat rows or columns so that pixels are square, if they are far from it."""
    smallest = min(spacing[:2])
    factors = [max(1, round(size / smallest)) for size in spacing[:2]]
    if factors == [1, 1]:
        return values
    size = [n * f for n, f in zip(values.shape, factors, strict=True)]
    return functional.interpolate(values[None, None].float(), size=size, mode="nearest")[0, 0].to(values.dtype)
