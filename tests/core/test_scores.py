# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Scores against MONAI, scikit-learn, torchmetrics and NumPy on the same tensors, and in closed form."""

from __future__ import annotations

import json
import math
import statistics as stdlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, compute_iou
from scipy import ndimage
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    f1_score,
    jaccard_score,
    log_loss,
    matthews_corrcoef,
)
from torch.nn import functional
from torchmetrics.classification import BinaryCalibrationError, MulticlassCalibrationError

from dacal_med.core.scores import (
    SCORES,
    ReliabilityTable,
    brier,
    class_average_precision,
    class_mcc,
    classwise_ece,
    dice,
    ece,
    iou,
    mcc,
    mce,
    mean_average_precision,
    mean_dice,
    mean_iou,
    nll,
    reliability_table,
    summarise,
    summarise_cases,
)
from dacal_med.core.statistics import SegmentationStatistics

SIZES = {2: (13, 11), 3: (7, 6, 5)}
IGNORED = 255
DIVISORS = [1, 2, 3, 5, 6, 10, 15, 30]


def problem(
    seed: int, dims: int, classes: int = 3, batch: int = 1, ignored: float = 0.1, dtype=torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities that know a little of labels that come in patches."""
    g = torch.Generator().manual_seed(seed)
    size = SIZES[dims]
    labels = torch.randint(0, classes, (batch, 1, *[math.ceil(n / 3) for n in size]), generator=g)
    for axis, n in enumerate(size, start=2):
        labels = labels.repeat_interleave(3, dim=axis).narrow(axis, 0, n)
    logits = 1.5 * torch.randn(batch, classes, *size, generator=g, dtype=torch.float64)
    logits += functional.one_hot(labels[:, 0], classes).movedim(-1, 1)
    labels = labels.masked_fill(torch.rand(labels.shape, generator=g) < ignored, IGNORED)
    return logits.softmax(1).to(dtype), labels


def statistics_of(*batches, **options) -> SegmentationStatistics:
    result = SegmentationStatistics(batches[0][0].shape[1], **options)
    for probabilities, labels in batches:
        result.update(probabilities, labels)
    return result


def flattened(probabilities: torch.Tensor, labels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Rows of probabilities and their labels, ignored voxels left out."""
    rows = probabilities.movedim(1, -1).flatten(0, -2).numpy()
    kept = (labels != IGNORED).flatten().numpy()
    return rows[kept], labels.flatten().numpy()[kept]


def naive_ece(confidence: np.ndarray, correct: np.ndarray, bins: int, largest: bool = False) -> float:
    """Expected (or largest) calibration error from its definition."""
    gaps, shares = [0.0], [0.0]
    for b in range(bins):
        inside = (confidence > b / bins) & (confidence <= (b + 1) / bins) | ((confidence == 0) & (b == 0))
        if inside.any():
            gaps.append(abs(correct[inside].mean() - confidence[inside].mean()))
            shares.append(inside.mean())
    return max(gaps) if largest else float(np.dot(gaps, shares))


def two_classes(*groups: tuple[float, int, int], **options) -> SegmentationStatistics:
    """Statistics of voxels predicted as class 0: for each group its confidence, voxels and right ones."""
    confidence = torch.cat([torch.full((n,), c, dtype=torch.float64) for c, n, _ in groups])
    labels = torch.cat([(torch.arange(n) >= right).long() for _, n, right in groups])
    probabilities = torch.stack([confidence, 1 - confidence])[None]
    return statistics_of((probabilities, labels.view(1, 1, -1)), **options)


# Overlap


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 6))
def test_overlap_equals_scikit_learn(seed, dims, classes):
    batch = problem(seed, dims, classes, batch=2)
    found = statistics_of(batch)
    rows, truth = flattened(*batch)
    options = {"labels": range(classes), "average": None, "zero_division": np.nan}
    wanted_dice = f1_score(truth, rows.argmax(1), **options)
    wanted_iou = jaccard_score(truth, rows.argmax(1), **{**options, "zero_division": 0})
    wanted_iou[np.isnan(wanted_dice)] = np.nan
    assert dice(found).tolist() == pytest.approx(wanted_dice.tolist(), abs=1e-6, nan_ok=True)
    assert iou(found).tolist() == pytest.approx(wanted_iou.tolist(), abs=1e-6, nan_ok=True)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 6))
def test_correlation_equals_scikit_learn(seed, dims, classes):
    batch = problem(seed, dims, classes, batch=2)
    found = statistics_of(batch)
    rows, truth = flattened(*batch)
    guess = rows.argmax(1)
    assert mcc(found) == pytest.approx(matthews_corrcoef(truth, guess), abs=1e-12)
    both = zip(class_mcc(found).tolist(), range(classes), strict=True)
    for value, k in both:
        if k in truth or k in guess:
            assert value == pytest.approx(matthews_corrcoef(truth == k, guess == k), abs=1e-12)
        else:
            assert math.isnan(value)


def confused(*rows: list[int]) -> SegmentationStatistics:
    """Statistics with this confusion matrix alone."""
    found = SegmentationStatistics(len(rows))
    found.confusion += torch.tensor(rows)
    return found


def test_correlation_of_two_classes_is_that_of_either():
    found = confused([70, 5], [8, 17])
    wanted = (17 * 70 - 5 * 8) / math.sqrt((17 + 5) * (17 + 8) * (70 + 5) * (70 + 8))
    assert mcc(found) == pytest.approx(wanted, rel=1e-14)
    assert class_mcc(found).tolist() == pytest.approx([wanted, wanted], rel=1e-14)


def test_correlation_at_its_ends():
    assert mcc(confused([3, 0], [0, 4])) == 1.0
    assert mcc(confused([0, 3], [4, 0])) == -1.0
    # One class throughout: nothing to correlate if both agree, no correlation if they do not.
    assert math.isnan(mcc(confused([7, 0], [0, 0])))
    assert mcc(confused([0, 7], [0, 0])) == mcc(confused([3, 0], [4, 0])) == mcc(confused([3, 4], [0, 0])) == 0.0


def test_correlation_of_more_voxels_than_fit_a_product_of_64_bit_integers():
    many = 10**12
    assert mcc(confused([many, 1], [1, many])) == pytest.approx(1 - 2e-12, abs=1e-15)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 4))
def test_average_precision_agrees_with_scikit_learn(seed, dims, classes):
    batch = problem(seed, dims, classes, batch=2)
    found = class_average_precision(statistics_of(batch))
    rows, truth = flattened(*batch)
    for k in range(classes):
        if k in truth:
            wanted = average_precision_score(truth == k, rows[:, k])
            assert float(found.low[k]) - 1e-12 <= wanted <= float(found.high[k]) + 1e-12
            assert float(found.value[k]) == pytest.approx(wanted, abs=0.02)
        else:
            assert math.isnan(found.value[k])
    present = [float(found.value[k]) for k in range(1, classes) if k in truth]
    mean = stdlib.fmean(present) if present else math.nan
    assert mean_average_precision(statistics_of(batch)) == pytest.approx(mean, nan_ok=True)


def test_average_precision_of_sections_is_what_da_isc_reports():
    """Its mean over sections of scikit-learn's scores, thresholded at one half, of two classes."""
    cases, wanted = [], []
    for seed in range(5):
        probabilities, labels = problem(seed, 2, 2, ignored=0.0, dtype=torch.float32)
        cases.append(statistics_of((probabilities, labels)))
        rows, truth = flattened(probabilities, labels)
        guess = rows[:, 1] >= 0.5
        four = (average_precision_score(truth, rows[:, 1]), f1_score(truth, guess), matthews_corrcoef(truth, guess))
        wanted.append((*four, jaccard_score(truth, guess)))
    found = summarise_cases(cases)["per_case"]
    means = [found[name]["mean"] for name in ("average_precision", "dice", "mcc", "miou")]
    assert means[0] == pytest.approx(np.mean(wanted, axis=0)[0], abs=0.01)
    assert means[1:] == pytest.approx(np.mean(wanted, axis=0)[1:].tolist(), abs=1e-6)


def test_average_precision_is_not_known_for_sums_of_earlier_versions():
    new = statistics_of(problem(0, 2))
    old = SegmentationStatistics(3)
    old.load_state_dict({name: value for name, value in new.state_dict().items() if not name.startswith("rank")})
    for found in (old, old + new):
        assert math.isnan(mean_average_precision(found))
        assert summarise(found, "abc")["average_precision"] is None
        assert summarise(found, "abc")["mcc"] is not None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), classes=st.integers(2, 4))
def test_overlap_equals_monai(seed, dims, classes):
    probabilities, labels = problem(seed, dims, classes, ignored=0.0)
    found = statistics_of((probabilities, labels))
    predicted, truth = (
        functional.one_hot(x, classes).movedim(-1, 1).float() for x in (probabilities.argmax(1), labels[:, 0])
    )
    present = truth.flatten(2).any(-1)[0]  # MONAI gives NaN wherever truth lacks a class, even if it is predicted
    monai_dice = DiceMetric(include_background=True, reduction="none")(predicted, truth)[0]
    monai_iou = compute_iou(predicted, truth)[0]
    assert present.any()
    assert dice(found)[present].tolist() == pytest.approx(monai_dice[present].tolist(), abs=1e-6)
    assert iou(found)[present].tolist() == pytest.approx(monai_iou[present].tolist(), abs=1e-6)
    assert mean_dice(statistics_of((probabilities, labels), background=None)) == pytest.approx(
        dice(found).nanmean().item(), abs=1e-12
    )


def test_overlap_of_a_hand_made_example():
    """Class 1: two of three predicted voxels are right, of three; class 2 has no part; class 3 is predicted alone."""
    predicted = torch.tensor([0, 0, 0, 0, 1, 1, 1, 0, 3])
    truth = torch.tensor([[[0, 0, 0, 0, 1, 1, 0, 1, 0]]])
    probabilities = functional.one_hot(predicted, 4).T.double().contiguous()[None]
    found = statistics_of((probabilities, truth))
    assert dice(found).tolist() == pytest.approx([8 / 11, 4 / 6, math.nan, 0.0], nan_ok=True)
    assert iou(found).tolist() == pytest.approx([4 / 7, 2 / 4, math.nan, 0.0], nan_ok=True)
    assert mean_dice(found) == pytest.approx((4 / 6 + 0) / 2)
    assert mean_iou(found) == pytest.approx((2 / 4 + 0) / 2)
    whole = statistics_of((probabilities, truth), background=None)
    assert mean_dice(whole) == pytest.approx((8 / 11 + 4 / 6 + 0) / 3)
    assert mean_iou(whole) == pytest.approx((4 / 7 + 2 / 4 + 0) / 3)
    other = statistics_of((probabilities, truth), background=1)
    assert mean_dice(other) == pytest.approx((8 / 11 + 0) / 2)
    assert mean_iou(other) == pytest.approx((4 / 7 + 0) / 2)


# Calibration


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(2, 5),
    bins=st.sampled_from([10, 15]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_calibration_errors_equal_torchmetrics(seed, dims, classes, bins, dtype):
    # torchmetrics' bins are [lo, hi) with 1.0 in one of its own; random confidences lie inside both.
    batches = [problem(seed + k, dims, classes, dtype=dtype, batch=2) for k in range(2)]
    found = statistics_of(*batches)
    for norm, score in (("l1", ece), ("max", mce)):
        metric = MulticlassCalibrationError(classes, n_bins=bins, norm=norm, ignore_index=IGNORED)
        for probabilities, labels in batches:
            assert float(probabilities.max()) < 1.0
            metric.update(probabilities, labels[:, 0])
        assert score(found, bins) == pytest.approx(metric.compute().item(), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]), bins=st.sampled_from(DIVISORS))
def test_calibration_errors_equal_their_definition(seed, dims, bins):
    batch = problem(seed, dims, batch=2)
    found = statistics_of(batch)
    rows, truth = flattened(*batch)
    confidence, correct = rows.max(1), rows.argmax(1) == truth
    assert ece(found, bins) == pytest.approx(naive_ece(confidence, correct, bins), abs=1e-12)
    assert mce(found, bins) == pytest.approx(naive_ece(confidence, correct, bins, largest=True), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(2, 4),
    bins=st.sampled_from([10, 15]),
)
def test_classwise_error_is_the_mean_of_one_against_rest(seed, dims, classes, bins):
    batch = problem(seed, dims, classes, batch=2)
    found = statistics_of(batch)
    rows, truth = flattened(*batch)
    wanted = []
    for k in range(classes):
        metric = BinaryCalibrationError(n_bins=bins, norm="l1")
        metric.update(torch.from_numpy(rows[:, k].copy()), torch.from_numpy(truth == k).long())
        wanted.append(metric.compute().item())
        table = reliability_table(found, bins, class_index=k)
        assert table.ece() == pytest.approx(wanted[-1], abs=1e-6)
        assert table.mce() == pytest.approx(naive_ece(rows[:, k], truth == k, bins, largest=True), abs=1e-12)
    assert classwise_ece(found, bins) == pytest.approx(np.mean(wanted), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    bins=st.sampled_from([10, 15]),
    background=st.sampled_from([0, 1]),
    width=st.integers(1, 2),
)
def test_errors_of_regions_equal_numpy(seed, dims, bins, background, width):
    probabilities, labels = problem(seed, dims, ignored=0.0)
    found = statistics_of((probabilities, labels), background=background, boundary_width=width)
    p, y = probabilities[0].numpy(), labels[0, 0].numpy()
    confidence, guess = p.max(0), p.argmax(0)
    size = 2 * width + 1
    regions = {
        "all": np.ones(y.shape, dtype=bool),
        "foreground": (y != background) | (guess != background),
        "boundary": ndimage.maximum_filter(y, size, mode="nearest") > ndimage.minimum_filter(y, size, mode="nearest"),
    }
    truth = np.moveaxis(np.eye(3)[y], -1, 0)
    for name, inside in regions.items():
        if not inside.any():
            continue
        part = confidence[inside], guess[inside] == y[inside]
        assert ece(found, bins, name) == pytest.approx(naive_ece(*part, bins), abs=1e-12)
        assert mce(found, bins, name) == pytest.approx(naive_ece(*part, bins, largest=True), abs=1e-12)
        wanted = -np.log((p * truth).sum(0))[inside].mean()
        assert nll(found, name) == pytest.approx(wanted, rel=1e-12)
        assert brier(found, name) == pytest.approx(((p - truth) ** 2).sum(0)[inside].mean(), rel=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_regions_differ(dims):
    """The cases above can tell: each region has another error."""
    found = statistics_of(problem(0, dims, ignored=0.0), boundary_width=1)
    for score in (ece, nll, brier):
        values = [score(found, region=region) for region in ("all", "foreground", "boundary")]
        assert min(abs(a - b) for k, a in enumerate(values) for b in values[:k]) > 1e-4


def test_closed_form_of_two_bins():
    """Gaps of 0.2 and 0.3 over half of the voxels each."""
    found = two_classes((0.85, 100, 65), (0.625, 100, 92), (0.625, 100, 93))
    assert ece(found) == pytest.approx(1 / 3 * 0.2 + 2 / 3 * 0.3, rel=1e-12)
    assert ece(found, 10) == pytest.approx(1 / 3 * 0.2 + 2 / 3 * 0.3, rel=1e-12)
    assert ece(found, 1) == pytest.approx(abs(250 / 300 - (85 + 125) / 300), rel=1e-12)
    assert mce(found) == pytest.approx(0.3, rel=1e-12)
    assert nll(found) == pytest.approx(
        -(65 * math.log(0.85) + 35 * math.log(0.15) + 185 * math.log(0.625) + 15 * math.log(0.375)) / 300, rel=1e-12
    )
    squares = 2 * (65 * 0.15**2 + 35 * 0.85**2 + 185 * 0.375**2 + 15 * 0.625**2)
    assert brier(found) == pytest.approx(squares / 300, rel=1e-12)


@pytest.mark.parametrize("bins", [5, 10, 15, 30])
def test_exactly_calibrated_voxels_have_no_error(bins):
    groups = [(c, 1000, round(1000 * c)) for c in (0.55, 0.624, 0.71, 0.85, 0.93, 0.99)]
    found = two_classes(*groups)
    assert ece(found, bins) == pytest.approx(0.0, abs=1e-12)
    assert mce(found, bins) == pytest.approx(0.0, abs=1e-12)
    assert classwise_ece(found, bins) == pytest.approx(0.0, abs=1e-12)
    wrong = two_classes(*[(c, n, right - 100) for c, n, right in groups])
    assert ece(wrong, bins) == pytest.approx(0.1, abs=1e-12)
    assert mce(wrong, bins) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_labels_drawn_from_the_probabilities_are_calibrated(dims):
    found, sharp = SegmentationStatistics(3, background=None), SegmentationStatistics(3, background=None)
    size = {2: (200, 200), 3: (40, 40, 25)}[dims]
    for _ in range(5):
        logits = torch.randn(1, 3, *size)
        rows = logits.softmax(1).movedim(1, -1).flatten(0, -2)
        labels = torch.multinomial(rows, 1).view(1, 1, *size)
        found.update(logits.softmax(1), labels)
        sharp.update((3 * logits).softmax(1), labels)
    # 200000 voxels: the error of a bin's accuracy is of order 0.005.
    assert ece(found) < 0.006
    assert ece(found, region="foreground") < 0.006
    assert classwise_ece(found) < 0.006
    assert ece(sharp) > 0.15
    # The true probabilities have the best proper scores.
    assert nll(found) < nll(sharp)
    assert brier(found) < brier(sharp)


@pytest.mark.parametrize("bins", [10, 15])
def test_confidence_on_an_edge_belongs_to_the_bin_below(bins):
    for k in range(math.ceil(bins / 2), bins + 1):
        table = reliability_table(two_classes((k / bins, 4, 1)), bins)
        wanted = torch.zeros(bins, dtype=torch.float64)
        wanted[k - 1] = 4
        assert torch.equal(table.count, wanted)
        assert float(table.upper[k - 1]) == k / bins
        assert float(table.accuracy[k - 1]) == 0.25
        assert float(table.confidence[k - 1]) == pytest.approx(k / bins, rel=1e-15)
    # What is above the edge and what is on it do not cancel: they lie in two bins.
    found = two_classes((0.6, 10, 10), (0.6 + 1e-9, 10, 2))
    assert ece(found, bins) == pytest.approx(0.4, abs=1e-8)
    below = two_classes((0.6, 10, 10), (0.6 - 1e-9, 10, 2))
    assert ece(below, bins) == pytest.approx(0.0, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]))
def test_coarser_bins_are_sums_of_finer_ones(seed, dims):
    found = statistics_of(problem(seed, dims))
    fine = reliability_table(found, 30)
    for bins in DIVISORS:
        table = reliability_table(found, bins)
        assert torch.equal(table.count, fine.count.view(bins, -1).sum(1))
        # Gaps within a coarse bin may cancel, and never add.
        assert table.ece() <= fine.ece() + 1e-12
        filled = table.count > 0
        assert torch.equal(table.accuracy.isnan(), ~filled)
        assert torch.equal(table.confidence.isnan(), ~filled)
        edges = np.linspace(0, 1, bins + 1)
        assert np.allclose(table.lower.numpy(), edges[:-1], rtol=1e-15)
        assert np.allclose(table.upper.numpy(), edges[1:], rtol=1e-15)
        assert (table.confidence[filled] > table.lower[filled] - 1e-12).all()
        assert (table.confidence[filled] <= table.upper[filled] + 1e-12).all()


def test_table_by_hand():
    table = reliability_table(two_classes((0.7, 8, 2), (0.9, 2, 2), (1.0, 5, 4)), 5)
    assert table.lower.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert table.upper.tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert table.count.tolist() == [0, 0, 0, 8, 7]
    assert table.accuracy.tolist() == pytest.approx([math.nan] * 3 + [0.25, 6 / 7], nan_ok=True)
    assert table.confidence.tolist() == pytest.approx([math.nan] * 3 + [0.7, 6.8 / 7], nan_ok=True)
    assert table.ece() == pytest.approx(8 / 15 * 0.45 + 7 / 15 * (0.8 / 7), rel=1e-12)
    assert table.mce() == pytest.approx(0.45, rel=1e-12)
    assert all(column.dtype == torch.float64 for column in table)


def test_an_empty_table_has_no_error():
    nothing, edges = torch.zeros(2), torch.tensor([0.0, 0.5])
    table = ReliabilityTable(edges, edges + 0.5, nothing, nothing / 0, nothing / 0)
    assert math.isnan(table.ece())
    assert math.isnan(table.mce())


@pytest.mark.parametrize("bins", [-1, 0, 4, 7, 20, 31, 60])
def test_bins_that_do_not_divide_30_are_refused(bins):
    found = two_classes((0.7, 8, 2))
    for score in (reliability_table, ece, mce, classwise_ece):
        with pytest.raises(ValueError, match=f"bins: found {bins}, wanted a divisor of 30"):
            score(found, bins)


def test_unknown_regions_are_refused():
    found = two_classes((0.7, 8, 2))
    for score in (reliability_table, ece, mce, nll, brier):
        with pytest.raises(ValueError, match="region: found 'lesion', wanted one of"):
            score(found, region="lesion")
    with pytest.raises(ValueError, match="region: found 'foreground', wanted 'all' for the table of one class"):
        reliability_table(found, region="foreground", class_index=1)


# Proper scores


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(2, 5),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_proper_scores_equal_scikit_learn_and_numpy(seed, dims, classes, dtype):
    batch = problem(seed, dims, classes, batch=2, dtype=dtype)
    found = statistics_of(batch)
    rows, truth = flattened(*batch)
    rows = rows.astype(np.float64)
    exact = rows / rows.sum(1, keepdims=True)
    assert nll(found) == pytest.approx(log_loss(truth, exact, labels=range(classes)), abs=1e-6)
    assert brier(found) == pytest.approx(((rows - np.eye(classes)[truth]) ** 2).sum(1).mean(), rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 9999), dims=st.sampled_from([2, 3]))
def test_brier_of_two_classes_is_twice_scikit_learn_s(seed, dims):
    batch = problem(seed, dims, 2)
    rows, truth = flattened(*batch)
    wanted = 2 * brier_score_loss(truth == 1, rows[:, 1], pos_label=True)
    assert brier(statistics_of(batch)) == pytest.approx(wanted, rel=1e-10)


def test_bounds_of_proper_scores():
    certain = two_classes((1.0, 10, 10))
    assert (nll(certain), brier(certain)) == (0.0, 0.0)
    assert brier(two_classes((1.0, 10, 0))) == 2.0
    assert math.isfinite(nll(two_classes((1.0, 10, 0))))


# Summaries


@pytest.mark.parametrize("dims", [2, 3])
def test_a_summary_holds_every_score(dims):
    found = statistics_of(problem(1, dims, 3, batch=2))
    summary = summarise(found, ["background", "left", "right"])
    expected = {
        "dice": mean_dice(found),
        "miou": mean_iou(found),
        "mcc": mcc(found),
        "average_precision": mean_average_precision(found),
        "ece": ece(found, 15),
        "ece_10": ece(found, 10),
        "foreground_ece": ece(found, 15, "foreground"),
        "boundary_ece": ece(found, 15, "boundary"),
        "classwise_ece": classwise_ece(found, 15),
        "mce": mce(found, 15),
        "nll": nll(found),
        "foreground_nll": nll(found, "foreground"),
        "brier": brier(found),
        "foreground_brier": brier(found, "foreground"),
    }
    assert set(SCORES) == set(expected)
    assert {name: summary[name] for name in expected} == expected
    assert len(set(expected.values())) == len(expected)
    assert summary["voxels"] == int(found.voxel_count[0].sum())
    rows, truth = flattened(*problem(1, dims, 3, batch=2))
    for k, name in enumerate(["background", "left", "right"]):
        values = summary["per_class"][name]
        mine = truth == k
        assert values["voxels"] == mine.sum()
        assert values["dice"] == dice(found)[k].item()
        assert values["iou"] == iou(found)[k].item()
        assert values["mcc"] == pytest.approx(matthews_corrcoef(mine, rows.argmax(1) == k), abs=1e-12)
        precision = average_precision_score(mine, rows[:, k])
        assert abs(values["average_precision"] - precision) <= values["average_precision_error"] + 1e-12
        assert values["ece"] == pytest.approx(naive_ece(rows[:, k], mine, 15), abs=1e-12)
        assert values["nll"] == pytest.approx(-np.log(rows[mine, k]).mean(), rel=1e-12)
    assert set(summary) == {*expected, "voxels", "per_class"}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


@pytest.mark.parametrize("dims", [2, 3])
def test_what_cannot_be_measured_is_nan_and_none(dims):
    """Background alone, predicted as such: no overlap of other classes, no foreground, no boundary."""
    probabilities = torch.full((1, 3, *SIZES[dims]), 0.1, dtype=torch.float64)
    probabilities[:, 0] = 0.8
    found = statistics_of((probabilities, torch.zeros(1, 1, *SIZES[dims])))
    assert dice(found).tolist() == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert iou(found).tolist() == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert class_average_precision(found).value.tolist() == pytest.approx([1, math.nan, math.nan], nan_ok=True)
    assert all(math.isnan(value) for value in class_mcc(found))
    for value in (mean_dice(found), mean_iou(found), mcc(found), mean_average_precision(found)):
        assert math.isnan(value)
    for region in ("foreground", "boundary"):
        for score in (ece, mce, nll, brier):
            assert math.isnan(score(found, region=region))
    summary = summarise(found, "abc")
    absent = {
        "dice",
        "miou",
        "mcc",
        "average_precision",
        "foreground_ece",
        "boundary_ece",
        "foreground_nll",
        "foreground_brier",
    }
    assert {name for name in SCORES if summary[name] is None} == absent
    assert summary["ece"] == pytest.approx(0.2)
    # An absent class still has a calibration error: it was given probabilities.
    assert summary["per_class"]["b"] == {
        "dice": None,
        "iou": None,
        "mcc": None,
        "average_precision": None,
        "average_precision_error": None,
        "ece": pytest.approx(0.1),
        "nll": None,
        "voxels": 0,
    }
    assert summary["classwise_ece"] == pytest.approx((0.2 + 0.1 + 0.1) / 3)
    json.dumps(summary, allow_nan=False)


def test_no_voxels_give_no_scores():
    summary = summarise(SegmentationStatistics(2), ["a", "b"])
    assert [summary[name] for name in SCORES] == [None] * len(SCORES)
    assert summary["voxels"] == 0
    for values in summary["per_class"].values():
        assert values.pop("voxels") == 0
        assert set(values.values()) == {None}
    json.dumps(summary, allow_nan=False)


@pytest.mark.parametrize("names", [[], ["a", "b"], ["a", "b", "c", "d"]])
def test_a_wrong_number_of_names_is_refused(names):
    with pytest.raises(ValueError, match=f"class_names: found {len(names)}, wanted 3"):
        summarise(SegmentationStatistics(3), names)


@pytest.mark.parametrize("dims", [2, 3])
def test_cases_are_averaged_with_their_spread(dims):
    cases = [statistics_of(problem(seed, dims)) for seed in range(4)]
    summary = summarise_cases(cases)
    assert set(summary) == {"per_case"}
    assert set(summary["per_case"]) == set(SCORES)
    for name, score in SCORES.items():
        values = [score(case) for case in cases]
        found = summary["per_case"][name]
        assert found["mean"] == pytest.approx(stdlib.fmean(values), rel=1e-12)
        assert found["std"] == pytest.approx(stdlib.stdev(values), rel=1e-9)
        assert found["n"] == 4
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_cases_without_a_score_do_not_count():
    """One voxel group per case, of class 0 (background) or, with mistakes, of class 1."""
    background, mixed, other = (
        two_classes((0.9, 10, 10), boundary_width=0),
        two_classes((0.9, 10, 8), boundary_width=0),
        two_classes((0.9, 10, 6), boundary_width=0),
    )
    found = summarise_cases([background, mixed, other])["per_case"]
    assert found["ece"] == {"mean": pytest.approx(0.5 / 3), "std": pytest.approx(stdlib.stdev([0.1, 0.1, 0.3])), "n": 3}
    # The foreground is what was missed, at confidence 0.9.
    assert found["foreground_ece"] == {"mean": pytest.approx(0.9), "std": pytest.approx(0, abs=1e-12), "n": 2}
    assert found["boundary_ece"] == {"mean": None, "std": None, "n": 0}
    one = summarise_cases([background, mixed])["per_case"]["foreground_nll"]
    assert one == {"mean": pytest.approx(-math.log(0.1)), "std": None, "n": 1}
    nothing = summarise_cases([])["per_case"]
    assert all(value == {"mean": None, "std": None, "n": 0} for value in nothing.values())
    json.dumps([found, nothing], allow_nan=False)


def test_the_foreground_ece_of_a_perfectly_calibrated_prediction_is_not_zero():
    """Its region is chosen by the truth: errors are all in it, while right background of the same confidence is not."""
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(1, 1, 1000, 1000, generator=generator)
    label = (torch.rand(p.shape, generator=generator) < p).long()
    statistics = SegmentationStatistics(2, ignore_index=None)
    statistics.update(torch.cat([1 - p, p], dim=1), label)
    assert ece(statistics) < 0.003
    # Background at p < 1/2 counts where the truth is foreground, with p of the voxels and all of them wrong:
    # voxels 1/2 + 1/8, sum of confidences (1 - 1/4) / 2 + (1/8 - 1/24), right 3/8.
    expected = (3 / 8 + 1 / 12 - 3 / 8) / (5 / 8)
    assert ece(statistics, region="foreground") == pytest.approx(expected, abs=0.003)
