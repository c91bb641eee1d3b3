# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Regions: unions of classes by name, which may overlap, such as a whole and its core.

Truth is in a region where its class is one of the region's, a prediction where the predicted class is. All that follows
from the confusion matrix, so that counts are whole numbers and add up over cases and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.subsets import subset_classes


def region_classes(regions: Mapping[str, Sequence[str | int]], class_names: Sequence[str]) -> dict[str, list[str]]:
    """Return the class names of each region.

    Args:
        regions: classes by the region's name, by name or index, e.g. ``{"whole": ["core", 2]}``.
        class_names: names by class.

    Raises:
        ValueError: naming the region, for one that is empty or no list, or that has an unknown class or one twice.
    """
    if not isinstance(regions, Mapping):
        raise ValueError(f"found {regions!r}, wanted a list of classes by each region's name")
    named: dict[str, list[str]] = {}
    for region, members in regions.items():
        if isinstance(members, str) or not isinstance(members, Sequence):
            raise ValueError(f"{region!r}: found {members!r}, wanted a name and a list of class names")
        indices = [member for member in members if type(member) is int]
        wrong = [index for index in indices if not 0 <= index < len(class_names)]
        if wrong:
            raise ValueError(f"{region!r}: found the class {wrong[0]}, wanted 0 to {len(class_names) - 1}")
        named[region] = [class_names[m] if type(m) is int else str(m) for m in members]
    subset_classes(named, class_names)
    return named


def known_regions(class_names: Sequence[str], regions: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return those regions all of whose classes a data set has, for a bundle that runs data sets of several kinds.

    Args:
        class_names: names by class.
        regions: class names by the region's name.
    """
    return {name: list(members) for name, members in regions.items() if set(members) <= set(class_names)}


def region_dice(statistics: SegmentationStatistics, classes: Sequence[int]) -> float:
    """Return the Dice coefficient of the union of ``classes``, NaN where truth and prediction lack it."""
    rows = statistics.confusion[list(classes)]
    hit, truth = int(rows[:, list(classes)].sum()), int(rows.sum())
    predicted = int(statistics.confusion[:, list(classes)].sum())
    return 2 * hit / (truth + predicted) if truth + predicted else math.nan


def region_voxels(statistics: SegmentationStatistics, classes: Sequence[int]) -> int:
    """Return how many voxels of the truth are in the union of ``classes``."""
    return int(statistics.confusion[list(classes)].sum())
