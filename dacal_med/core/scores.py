# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
r"""Scores as functions of :class:`~dacal_med.core.statistics.SegmentationStatistics`.

Expected calibration error is top-label ECE (Guo et al., ICML 2017, arXiv 1706.04599): confidence is the largest
probability, :math:`\sum_b n_b/N\,|acc_b - conf_b|` over equal-width bins ``(lo, hi]``, pooled over voxels. ECE alone
rewards guessing the base rate; NLL and Brier are proper scores. Dice, IoU, the Matthews correlation coefficient (MCC)
and average precision are the four scores of DA-ISC (Huang et al., MICCAI 2022, doi 10.1007/978-3-031-16440-8_9), as its
code computes them: pooled over the volume for MitoEM, the mean over sections for Lucchi.

What cannot be measured (a class absent from truth and prediction, a region without voxels) is NaN here and ``None`` in
summaries, never 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dacal_med.core.binning import FINE_BINS
from dacal_med.core.ranking import AveragePrecision, average_precision
from dacal_med.core.regions import region_dice, region_voxels
from dacal_med.core.statistics import REGIONS, SegmentationStatistics
from dacal_med.core.subsets import subset_classes


class ReliabilityTable(NamedTuple):
    """A reliability diagram in numbers; each field ``(bins,)`` float64.

    Attributes:
        lower: lower edge of each bin, outside it.
        upper: upper edge, inside it.
        count: voxels in the bin.
        accuracy: share that is right; NaN in an empty bin.
        confidence: mean confidence; NaN in an empty bin.
    """

    lower: Tensor
    upper: Tensor
    count: Tensor  # type: ignore[assignment]  # hides tuple.count
    accuracy: Tensor
    confidence: Tensor

    def ece(self) -> float:
        """Return the expected calibration error of this table, NaN if it is empty."""
        filled = self.count > 0
        gaps = (self.accuracy - self.confidence).abs()[filled]
        return float((self.count[filled] * gaps).sum() / self.count.sum()) if bool(filled.any()) else math.nan

    def mce(self) -> float:
        """Return the largest gap of a bin, NaN if the table is empty."""
        filled = self.count > 0
        return float((self.accuracy - self.confidence).abs()[filled].max()) if bool(filled.any()) else math.nan


def dice(statistics: SegmentationStatistics) -> Tensor:
    """Return the Dice coefficient ``(C,)`` of each class, NaN where truth and prediction lack it."""
    hit = statistics.confusion.diagonal().double()
    return 2.0 * hit / (statistics.confusion.sum(0) + statistics.confusion.sum(1)).double()


def iou(statistics: SegmentationStatistics) -> Tensor:
    """Return the intersection over union ``(C,)`` of each class, NaN where truth and prediction lack it."""
    hit = statistics.confusion.diagonal().double()
    return hit / ((statistics.confusion.sum(0) + statistics.confusion.sum(1)).double() - hit)


def mean_dice(statistics: SegmentationStatistics) -> float:
    """Return the mean Dice over the classes present, background left out; NaN if none is."""
    return _mean_present(dice(statistics), statistics.background)


def mean_iou(statistics: SegmentationStatistics) -> float:
    """Return the mean IoU over the classes present, background left out; NaN if none is."""
    return _mean_present(iou(statistics), statistics.background)


def mcc(statistics: SegmentationStatistics) -> float:
    """Return the Matthews correlation coefficient of several classes, R_K, from -1 to 1.

    Gorodkin, Comput Biol Chem 28 (2004) 367, doi 10.1016/j.compbiolchem.2004.09.006; of two classes it is the
    coefficient of either. NaN where truth and prediction are one and the same class throughout; 0 where only one of
    them is, or each is another class.
    """
    return _correlation(statistics.confusion.tolist())


def class_mcc(statistics: SegmentationStatistics) -> Tensor:
    """Return the Matthews correlation coefficient ``(C,)`` of each class against the rest; NaN and 0 as :func:`mcc`."""
    confusion = statistics.confusion.tolist()
    total = sum(map(sum, confusion))
    values = []
    for k, row in enumerate(confusion):
        hit, missed, wrong = row[k], sum(row) - row[k], sum(other[k] for other in confusion) - row[k]
        values.append(_correlation([[hit, missed], [wrong, total - hit - missed - wrong]]))
    return torch.tensor(values, dtype=torch.float64)


def class_average_precision(statistics: SegmentationStatistics) -> AveragePrecision:
    """Return the average precision of each class against the rest, and the bounds within which its bins leave it.

    NaN where truth lacks the class, and for statistics loaded from states of earlier versions.
    """
    found = average_precision(statistics.rank_count, statistics.rank_positive)
    complete = statistics.rank_count.sum(1).cpu() == statistics.voxel_count[0].sum().cpu()
    return AveragePrecision(*(values.masked_fill(~complete, math.nan) for values in found))


def mean_average_precision(statistics: SegmentationStatistics) -> float:
    """Return the mean average precision over the classes that truth has, background left out; NaN if there is none."""
    return _mean_present(class_average_precision(statistics).value, statistics.background)


def subset_means(statistics: SegmentationStatistics, classes: Sequence[int]) -> dict[str, float]:
    """Return the mean ``dice`` and ``miou`` over those of ``classes`` that are present, NaN if none is.

    A class counts because it is named, so that the background may be among them.
    """
    chosen = torch.tensor(classes, dtype=torch.long, device=statistics.confusion.device)
    return {
        "dice": _mean_present(dice(statistics)[chosen], None),
        "miou": _mean_present(iou(statistics)[chosen], None),
    }


def reliability_table(
    statistics: SegmentationStatistics, bins: int = 15, region: str = "all", class_index: int | None = None
) -> ReliabilityTable:
    """Return counts, accuracy and mean confidence by bin of confidence.

    Args:
        statistics: the sums.
        bins: a divisor of 30.
        region: ``"all"``, ``"foreground"`` or ``"boundary"``; for top-label tables.
        class_index: a class for its one-against-rest table over all voxels, ``None`` for the top label.

    Raises:
        ValueError: for another number of bins or region, or a region for a one-against-rest table.
    """
    if bins < 1 or FINE_BINS % bins:
        raise ValueError(f"bins: found {bins}, wanted a divisor of {FINE_BINS}")
    row = _region(region)
    if class_index is None:
        count, right, total = (
            statistics.confidence_count[row],
            statistics.confidence_correct[row],
            statistics.confidence_sum[row],
        )
    elif region == "all":
        count, right, total = (
            statistics.class_count[class_index],
            statistics.class_positive[class_index],
            statistics.class_sum[class_index],
        )
    else:
        raise ValueError(f"region: found {region!r}, wanted 'all' for the table of one class")
    count, right, total = (x.view(bins, -1).sum(1).double().cpu() for x in (count, right, total))
    edges = torch.arange(bins + 1, dtype=torch.float64) / bins
    return ReliabilityTable(edges[:-1], edges[1:], count, right / count, total / count)


def ece(statistics: SegmentationStatistics, bins: int = 15, region: str = "all") -> float:
    """Return the top-label expected calibration error; NaN for a region without voxels."""
    return reliability_table(statistics, bins, region).ece()


def mce(statistics: SegmentationStatistics, bins: int = 15, region: str = "all") -> float:
    """Return the maximum calibration error: the largest gap of a bin that is not empty."""
    return reliability_table(statistics, bins, region).mce()


def classwise_ece(statistics: SegmentationStatistics, bins: int = 15) -> float:
    """Return the mean over classes of the one-against-rest ECE (Kull et al., NeurIPS 2019, arXiv 1910.12656)."""
    values = [reliability_table(statistics, bins, class_index=k).ece() for k in range(statistics.num_classes)]
    return sum(values) / len(values)


def nll(statistics: SegmentationStatistics, region: str = "all") -> float:
    """Return the mean negative log-likelihood of the truth, in nats."""
    return _mean_over_voxels(statistics.nll_sum, statistics, region)


def brier(statistics: SegmentationStatistics, region: str = "all") -> float:
    """Return the mean squared distance of the probabilities to the one-hot truth, in ``[0, 2]``."""
    return _mean_over_voxels(statistics.brier_sum, statistics, region)


SCORES: dict[str, Callable[[SegmentationStatistics], float]] = {
    "dice": mean_dice,
    "miou": mean_iou,
    "mcc": mcc,
    "average_precision": mean_average_precision,
    "ece": ece,
    "ece_10": lambda s: ece(s, bins=10),
    "foreground_ece": lambda s: ece(s, region="foreground"),
    "boundary_ece": lambda s: ece(s, region="boundary"),
    "classwise_ece": classwise_ece,
    "mce": mce,
    "nll": nll,
    "foreground_nll": lambda s: nll(s, region="foreground"),
    "brier": brier,
    "foreground_brier": lambda s: brier(s, region="foreground"),
}
"""The scores of a summary by name."""


def summarise(
    statistics: SegmentationStatistics,
    class_names: Sequence[str],
    class_subsets: Mapping[str, Sequence[str]] | None = None,
    regions: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return every score, pooled over voxels, ready for JSON.

    Args:
        statistics: the sums.
        class_names: names by class.
        class_subsets: class names by subset, for further means.
        regions: class names by region, whose union is scored as one.

    Returns:
        The scores of :data:`SCORES`, ``voxels``, and ``per_class`` with ``dice``, ``iou``, ``mcc``,
        ``average_precision`` and the most that it can be wrong by (``average_precision_error``), ``ece`` (these one
        against rest), ``nll`` and ``voxels`` by class name; with subsets also ``class_subsets``, the means of
        :func:`subset_means` by name, with regions ``regions``, ``dice`` and ``voxels`` by name; ``None`` where a score
        does not exist.

    Raises:
        ValueError: if the number of names is not the number of classes, or as of :func:`subset_classes`.
    """
    if len(class_names) != statistics.num_classes:
        raise ValueError(f"class_names: found {len(class_names)}, wanted {statistics.num_classes}")
    summary: dict[str, Any] = {name: _or_none(score(statistics)) for name, score in SCORES.items()}
    summary["voxels"] = int(statistics.voxel_count[0].sum())
    class_dice, class_iou, correlation = dice(statistics), iou(statistics), class_mcc(statistics)
    precision, low, high = class_average_precision(statistics)
    error = torch.maximum(precision - low, high - precision)
    class_nll = statistics.nll_sum[0] / statistics.voxel_count[0]
    summary["per_class"] = {
        name: {
            "dice": _or_none(float(class_dice[k])),
            "iou": _or_none(float(class_iou[k])),
            "mcc": _or_none(float(correlation[k])),
            "average_precision": _or_none(float(precision[k])),
            "average_precision_error": _or_none(float(error[k])),
            "ece": _or_none(reliability_table(statistics, class_index=k).ece()),
            "nll": _or_none(float(class_nll[k])),
            "voxels": int(statistics.voxel_count[0, k]),
        }
        for k, name in enumerate(class_names)
    }
    if class_subsets:
        summary["class_subsets"] = {
            name: {key: _or_none(value) for key, value in subset_means(statistics, classes).items()}
            for name, classes in subset_classes(class_subsets, class_names).items()
        }
    if regions:
        summary["regions"] = {
            name: {"dice": _or_none(region_dice(statistics, union)), "voxels": region_voxels(statistics, union)}
            for name, union in subset_classes(regions, class_names).items()
        }
    return summary


def summarise_cases(cases: Sequence[SegmentationStatistics]) -> dict[str, Any]:
    """Return the mean and spread of each score over cases, ready for JSON.

    Args:
        cases: the sums of each case.

    Returns:
        ``{"per_case": {score: {"mean", "std", "n"}}}`` over the ``n`` cases in which the score exists; ``std`` is the
        sample standard deviation, ``None`` for fewer than two.
    """
    return {"per_case": {name: _over_cases(map(score, cases)) for name, score in SCORES.items()}}


def summarise_run(
    cases: Sequence[SegmentationStatistics],
    class_names: Sequence[str],
    groups: Sequence[str | None] | None = None,
    class_subsets: Mapping[str, Sequence[str]] | None = None,
    regions: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Return everything known of an evaluation: :func:`summarise` of the sum of all cases, and the spread over cases.

    Args:
        cases: the sums of each case, at least one, on one device.
        class_names: names by class.
        groups: the group of each case, ``None`` for cases in none.
        class_subsets: class names by subset, for further means.
        regions: class names by region, whose union is scored as one.

    Returns:
        Both mappings as one, each of ``regions`` with ``per_case`` (``{"dice": {"mean", "std", "n"}}``); where cases
        have groups also ``per_group`` with ``cases`` (how many) and :func:`summarise` of their sum by group, in
        alphabetical order.

    Raises:
        ValueError: if there is no case, the number of names or groups is wrong, or as of :func:`subset_classes`.
    """
    summary = {**summarise(pool(cases), class_names, class_subsets, regions), **summarise_cases(cases)}
    for name, union in subset_classes(regions or {}, class_names).items():
        spread = _over_cases(region_dice(case, union) for case in cases)
        summary["regions"][name]["per_case"] = {"dice": spread}
    grouped = by_group(cases, [None] * len(cases) if groups is None else groups)
    if grouped:
        summary["per_group"] = {
            name: {"cases": len(members), **summarise(pool(members), class_names, class_subsets, regions)}
            for name, members in grouped.items()
        }
    return summary


def by_group(
    cases: Sequence[SegmentationStatistics], groups: Sequence[str | None]
) -> dict[str, list[SegmentationStatistics]]:
    """Return the cases of each group, groups in alphabetical order, cases in theirs.

    Args:
        cases: the sums of each case.
        groups: the group of each, ``None`` for cases in none.

    Raises:
        ValueError: if there is not one group for each case.
    """
    if len(groups) != len(cases):
        raise ValueError(f"groups: found {len(groups)}, wanted {len(cases)}, one for each case")
    names = sorted({group for group in groups if group is not None})
    return {name: [case for case, group in zip(cases, groups, strict=True) if group == name] for name in names}


def pool(cases: Sequence[SegmentationStatistics]) -> SegmentationStatistics:
    """Return the sum of all cases.

    Raises:
        ValueError: if there is none.
    """
    if not cases:
        raise ValueError("cases: found none, wanted at least one")
    total = cases[0].copy()
    for case in cases[1:]:
        total += case
    return total


def _correlation(confusion: Sequence[Sequence[int]]) -> float:
    """Return R_K of a confusion matrix ``[truth][prediction]``, in whole numbers up to the last division."""
    truth, predicted = [sum(row) for row in confusion], [sum(column) for column in zip(*confusion, strict=True)]
    total, hit = sum(truth), sum(row[k] for k, row in enumerate(confusion))
    spread = [total**2 - sum(n**2 for n in counts) for counts in (truth, predicted)]
    if 0 in spread:
        return math.nan if hit == total and not any(spread) else 0.0
    covariance = hit * total - sum(t * p for t, p in zip(truth, predicted, strict=True))
    return max(-1.0, min(1.0, covariance / math.sqrt(spread[0] * spread[1])))


def _over_cases(found: Iterable[float]) -> dict[str, float | int | None]:
    values = [value for value in found if not math.isnan(value)]
    tensor = torch.tensor(values, dtype=torch.float64)
    return {
        "mean": float(tensor.mean()) if values else None,
        "std": float(tensor.std()) if len(values) > 1 else None,
        "n": len(values),
    }


def _region(region: str) -> int:
    if region not in REGIONS:
        raise ValueError(f"region: found {region!r}, wanted one of {list(REGIONS)}")
    return REGIONS.index(region)


def _mean_over_voxels(sums: Tensor, statistics: SegmentationStatistics, region: str) -> float:
    row = _region(region)
    return float(sums[row].sum() / statistics.voxel_count[row].sum())


def _mean_present(values: Tensor, left_out: int | None) -> float:
    kept = torch.ones_like(values, dtype=torch.bool)
    if left_out is not None:
        kept[left_out] = False
    present = values[kept & ~values.isnan()]
    return float(present.mean()) if present.numel() else math.nan


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
