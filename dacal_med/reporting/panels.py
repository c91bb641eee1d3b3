# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One case at a glance: slice, truth, prediction, confidence, error and temperature side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

LEGEND = 7
"""Classes in a row of the legend."""


def class_colours(count: int, background: int | None = 0) -> list[tuple[float, float, float]]:
    """Return one colour per class, background black; the first seven are told apart by colour-blind readers too.

    Args:
        count: number of classes.
        background: the class that is drawn as none; ``None`` where every class is one.
    """
    okabe = ["#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7"]
    colours = [matplotlib.colors.to_rgb(c) for c in okabe]
    wanted = count if background is None else count - 1
    if wanted > len(colours):
        wheel = matplotlib.colormaps["gist_rainbow"](np.linspace(0, 1, wanted - len(colours)))
        wheel[1::2, :3] *= 0.6  # neighbours on the wheel differ little in hue
        colours += [tuple(map(float, c[:3])) for c in wheel]  # type: ignore[misc]
    colours = colours[:wanted]
    if background is not None:
        colours.insert(background, (0.0, 0.0, 0.0))
    return colours


def central_slice(volumes: Mapping[str, Tensor], background: int | None = 0) -> dict[str, Tensor]:
    """Cut the slice with the most foreground (of truth or prediction) along the last axis of each volume.

    Args:
        volumes: equally shaped ``(H, W, D)`` or ``(H, W)`` tensors, with ``prediction`` and perhaps ``label`` among
            them.
        background: class that is no foreground; ``None`` where every class is.

    Returns:
        2D tensors by name; a 2D image is its own slice.
    """
    if volumes["prediction"].dim() == 2:
        return dict(volumes)
    foreground = volumes["prediction"] != (-1 if background is None else background)
    if "label" in volumes:
        foreground = foreground | ((volumes["label"] != background) & (volumes["label"] != 255))
    position = int(foreground.flatten(0, -2).sum(dim=0).argmax())
    return {name: volume[..., position] for name, volume in volumes.items()}


def image_panel(
    image: Tensor | None,
    prediction: Tensor,
    confidence: Tensor,
    class_names: Sequence[str],
    label: Tensor | None = None,
    error: Tensor | None = None,
    temperature: Tensor | None = None,
    title: str = "",
    columns: int = 3,
    size: float = 2.9,
    background: int | None = 0,
) -> Figure:
    """Draw one 2D slice of a case.

    Args:
        image: ``(H, W)`` intensities; ``None`` where they are not at hand.
        prediction: ``(H, W)`` classes.
        confidence: ``(H, W)`` largest probability.
        class_names: names by class.
        label: ``(H, W)`` true classes, if known.
        error: ``(H, W)`` where the prediction is wrong.
        temperature: ``(H, W)``, drawn on a log scale around 1.
        title: above the panel.
        columns: parts side by side, at most.
        size: width of a part in inches.
        background: class that is not drawn; ``None`` where every class is.

    Returns:
        A figure.
    """
    colours = class_colours(len(class_names), background)
    present = {int(k) for part in (prediction, label) if part is not None for k in part.unique()} - {background}
    handles = [Patch(color=colours[k], label=name) for k, name in enumerate(class_names) if k in present]
    parts = [*(["image"] if image is not None else []), *(["truth"] if label is not None else [])]
    parts += ["prediction", "confidence"]
    parts += [name for name, value in (("error", error), ("temperature", temperature)) if value is not None]
    height, width = prediction.shape
    # First axis to the right, second upwards: in RAS the patient's right is on the right, the front on top.
    columns = min(len(parts), columns)
    rows = math.ceil(len(parts) / columns)
    aspect = min(2.0, width / max(height, 1))
    legend = 0.2 * (1 + math.ceil(len(handles) / LEGEND))
    figure = Figure(figsize=(size * columns, rows * (size * aspect + 0.3) + legend), layout="constrained")
    grid = np.ravel(figure.subplots(rows, columns))
    for unused in grid[len(parts) :]:
        unused.set_axis_off()
    axes = dict(zip(parts, grid, strict=False))
    for name, axis in axes.items():
        axis.set_title(name, fontsize=10)
        axis.set_axis_off()
        # Without an image classes are seen on black.
        _show(axis, torch.zeros_like(confidence) if image is None else image, cmap="gray")
    if label is not None:
        _overlay(axes["truth"], label, colours, background)
    _overlay(axes["prediction"], prediction, colours, background)
    shown = _show(axes["confidence"], confidence, cmap="viridis", vmin=1.0 / len(class_names), vmax=1.0)
    figure.colorbar(shown, ax=axes["confidence"], fraction=0.046, pad=0.02)
    if error is not None:
        _show(axes["error"], torch.where(error.bool(), 1.0, math.nan), cmap=ListedColormap(["#D55E00"]), alpha=0.8)
    if temperature is not None:
        # Symmetric around 1 in the log domain, and never so narrow that rounding fills the scale.
        reach = max(float(temperature.log().abs().max()), math.log(1.1))
        shown = _show(axes["temperature"], temperature, cmap="RdBu_r", norm=LogNorm(math.exp(-reach), math.exp(reach)))
        bar = figure.colorbar(shown, ax=axes["temperature"], fraction=0.046, pad=0.02)
        ticks = [math.exp(-reach), 1.0, math.exp(reach)]
        bar.set_ticks(ticks, labels=[f"{t:.2f}" for t in ticks])
        bar.ax.minorticks_off()
    if handles:
        figure.legend(
            handles=handles, loc="outside lower center", ncols=min(len(handles), LEGEND), frameon=False, fontsize=9
        )
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _show(axis: Axes, values: Tensor, **options: object) -> matplotlib.image.AxesImage:
    return axis.imshow(values.float().cpu().numpy().T, origin="lower", interpolation="nearest", **options)  # type: ignore[arg-type]


def _overlay(
    axis: Axes, classes: Tensor, colours: Sequence[tuple[float, float, float]], background: int | None
) -> None:
    known = classes.long().cpu()
    rgba = np.zeros((*known.T.shape, 4))
    for k, colour in enumerate(colours):
        if k != background:
            rgba[known.T.numpy() == k] = (*colour, 0.55)
    axis.imshow(rgba, origin="lower", interpolation="nearest")
