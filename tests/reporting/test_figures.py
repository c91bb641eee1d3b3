# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Figures show the numbers they are given: bars, curves and overlays are read back from the drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from matplotlib.container import BarContainer

from dacal_med.core.scores import ReliabilityTable
from dacal_med.reporting.panels import central_slice, class_colours, image_panel
from dacal_med.reporting.reliability import reliability_diagram, reliability_histogram, reliability_overlay
from dacal_med.reporting.tables import score_table


def table(accuracy, confidence, count):
    edges = torch.linspace(0, 1, len(count) + 1, dtype=torch.float64)
    columns = (torch.tensor(c, dtype=torch.float64) for c in (count, accuracy, confidence))
    return ReliabilityTable(edges[:-1], edges[1:], *columns)


EXAMPLE = table([math.nan, 0.25, 0.5, 0.9], [math.nan, 0.4, 0.6, 0.95], [0, 10, 30, 60])


def test_diagram_shows_accuracy_counts_and_ece():
    figure = reliability_diagram(EXAMPLE, "title")
    axes, counts = figure.axes
    bars = [c for c in axes.containers if isinstance(c, BarContainer) and c.get_label() == "accuracy"]
    assert [p.get_height() for p in bars[0]] == [0.25, 0.5, 0.9]
    assert [p.get_height() for p in counts.containers[0]] == [0, 10, 30, 60]
    ece = 0.1 * 0.15 + 0.3 * 0.1 + 0.6 * 0.05
    texts = " ".join(t.get_text() for t in axes.texts)
    assert f"ECE {100 * ece:.2f} %" in texts
    assert "N = 100" in texts


def test_an_empty_table_has_no_ece():
    nothing = table([math.nan] * 4, [math.nan] * 4, [0] * 4)
    assert "—" in " ".join(t.get_text() for t in reliability_diagram(nothing).axes[0].texts)


def test_overlay_has_a_curve_per_name():
    other = table([0.1, 0.3, 0.6, 0.9], [0.1, 0.4, 0.7, 0.9], [5, 5, 5, 5])
    figure = reliability_overlay({"before": EXAMPLE, "after": other}, "title")
    labels = " ".join(figure.axes[0].get_legend_handles_labels()[1])
    assert "before" in labels
    assert "after" in labels
    heights = [line.get_ydata().tolist() for line in figure.axes[0].lines]
    assert any(np.allclose(values, [0.1, 0.3, 0.6, 0.9]) for values in heights if len(values) == 4)


def test_overlay_leaves_out_bins_of_a_few_voxels_among_many():
    noisy = table([1.0, 0.3, 0.6, 0.9], [0.1, 0.4, 0.7, 0.9], [1, 5000, 5000, 9000])
    curve = next(line for line in reliability_overlay({"x": noisy}, "").axes[0].lines if "x" in str(line.get_label()))
    assert curve.get_ydata().tolist() == [0.3, 0.6, 0.9]


def test_histogram_shows_the_median_over_cases():
    cases = [
        table([math.nan, 0.2, 0.4, accuracy], [math.nan, 0.4, 0.6, 0.9], [0, 1, 1, 1]) for accuracy in (0.7, 0.8, 1.0)
    ]
    figure = reliability_histogram(cases, "title")
    median = next(line for line in figure.axes[0].lines if line.get_label() == "median over cases")
    np.testing.assert_allclose(median.get_ydata(), [0.2, 0.4, 0.8])
    assert [p.get_height() for p in figure.axes[1].containers[0]] == [0, 3, 3, 3]


@pytest.mark.parametrize("classes", [2, 5, 19])
def test_every_class_has_its_colour(classes):
    colours = class_colours(classes)
    assert len(set(colours)) == len(colours) == classes
    assert colours[0] == (0.0, 0.0, 0.0)
    every = class_colours(classes, background=None)
    assert len(set(every)) == len(every) == classes
    assert (0.0, 0.0, 0.0) not in every
    assert class_colours(classes, 1) == [colours[1], colours[0], *colours[2:]]
    assert len(set(class_colours(classes, None)) - {colours[0]}) == classes


def test_slice_with_most_foreground():
    prediction = torch.zeros(4, 4, 3, dtype=torch.long)
    prediction[:2, :2, 2] = 1
    label = torch.zeros(4, 4, 3)
    label[..., 0] = 255.0  # ignored voxels are no foreground
    slices = central_slice({"prediction": prediction, "label": label, "image": torch.rand(4, 4, 3)})
    assert torch.equal(slices["prediction"], prediction[..., 2])
    flat = {"prediction": prediction[..., 0]}
    assert central_slice(flat) == flat
    assert torch.equal(central_slice({"prediction": prediction}, background=1)["prediction"], prediction[..., 0])


def test_panel_draws_what_it_is_given():
    image, prediction = torch.rand(6, 5), torch.randint(0, 3, (6, 5))
    figure = image_panel(image, prediction, torch.rand(6, 5), ["background", "one", "two"])
    assert [a.get_title() for a in figure.axes[:3]] == ["image", "prediction", "confidence"]
    full = image_panel(
        image,
        prediction,
        torch.rand(6, 5),
        ["background", "one", "two"],
        label=prediction,
        error=torch.rand(6, 5) > 0.5,
        temperature=1.0 + torch.rand(6, 5),
        title="case",
    )
    titles = [a.get_title() for a in full.axes if a.get_title()]
    assert titles == ["image", "truth", "prediction", "confidence", "error", "temperature"]
    # The first array axis runs to the right, the second upwards.
    np.testing.assert_allclose(full.axes[0].images[0].get_array(), image.numpy().T)
    assert full.axes[0].images[0].origin == "lower"


@pytest.mark.parametrize(("background", "drawn"), [(0, ["car"]), (1, ["road"]), (None, ["road", "car"])])
def test_every_class_but_the_background_is_drawn(background, drawn):
    prediction = torch.tensor([[0, 0], [0, 1]])
    figure = image_panel(None, prediction, torch.ones(2, 2), ["road", "car"], background=background)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == drawn
    opaque = figure.axes[0].images[1].get_array()[..., 3] > 0
    np.testing.assert_array_equal(opaque, np.ones((2, 2), bool) if background is None else background != prediction.T)


def summary(value):
    per_class = {
        name: {"dice": value, "iou": value, "ece": 0.1, "nll": None if name == "two" else 0.3}
        for name in ("one", "two")
    }
    return {"dice": value, "miou": 0.5, "ece": 0.02, "foreground_ece": None, "nll": 0.4, "per_class": per_class}


def test_table_shows_change_and_what_is_absent():
    lines = score_table({"before": summary(0.25), "after": summary(0.5)}, ["one", "two"]).splitlines()
    assert lines[0].split() == ["score", "before", "after", "change"]
    assert lines[2].split() == ["overall", "Dice", "0.2500", "0.5000", "+0.2500"]
    assert any(line.split() == ["foreground", "ECE", "absent", "absent"] for line in lines)
    assert sum(line.startswith("one") for line in lines) == 1
    assert lines[-1].split() == ["NLL", "absent", "absent"]
    assert len({len(line) for line in lines if "absent" not in line}) == 1
    assert "change" not in score_table({"score": summary(0.5)}, ["one", "two"])


def test_table_shows_regions():
    first, second = ({**summary(0.25), "regions": {"both": {"dice": value}}} for value in (None, 0.75))
    lines = score_table({"before": first, "after": second}, ["one", "two"]).splitlines()
    assert lines[-1].split() == ["region:", "both", "Dice", "absent", "0.7500"]
