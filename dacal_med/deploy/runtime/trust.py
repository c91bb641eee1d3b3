# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""How far to trust one segmentation, from its probabilities and without labels, in one pass over the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dacal_med.deploy.runtime.trust_effects import (
    LEVEL,
    LogitHistogram,
    Spread,
    add_voxels,
    expected_dice,
    fit_spread,
    intervals,
)
from dacal_med.deploy.runtime.trust_histograms import BINS, distance, p_value, shares

LOW_CONFIDENCE = 0.75
"""Voxels whose largest probability is below it count as doubtful."""

SCHEMA = 1
UNITS = {"ml": 1e-3, "pixels": 1.0}
_SUM_TOLERANCE = 0.01


class TrustAccumulator:
    """Collects what a segmentation says about itself, slab by slab, in memory that does not grow with the image.

    Args:
        class_names: names by channel of the probabilities.
        voxel_volume_mm3: of the voxels that are given to :meth:`update`; 1 for pictures.
        reference: what is usual for this model, as ``dacal_med.deploy.export.trust_reference`` writes it to
            ``configs/trust.json``; without one nothing is said about the distribution, and intervals are wide.
        background: class that is no structure; ``None`` where every class is one.
        unit: "ml", or "pixels" for pictures, which have no scale.

    Raises:
        ValueError: if the reference is of other classes or another schema, or a number is out of range.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        voxel_volume_mm3: float,
        reference: Mapping[str, Any] | None = None,
        background: int | None = 0,
        unit: str = "ml",
    ) -> None:
        if unit not in UNITS:
            raise ValueError(f"unit: found {unit!r}, wanted one of {list(UNITS)}")
        if not voxel_volume_mm3 > 0:
            raise ValueError(f"voxel_volume_mm3: found {voxel_volume_mm3}, wanted a positive number")
        if background is not None and not 0 <= background < len(class_names):
            raise ValueError(f"background: found {background}, wanted a class below {len(class_names)} or None")
        if reference is not None:
            _check_reference(reference, class_names, background)
        self.class_names = tuple(class_names)
        self.reference = reference
        self.background = background
        self.unit = unit
        self.voxel_volume = float(voxel_volume_mm3) * UNITS[unit]
        self.classes = [k for k in range(len(class_names)) if k != background]
        self.inside = {k: LogitHistogram() for k in self.classes}
        self.outside = {k: LogitHistogram() for k in self.classes}
        self.doubtful = {k: 0 for k in self.classes}
        self.confidence_sum = {k: 0.0 for k in self.classes}
        self.voxels = 0
        self.confidence = torch.zeros(2, BINS, dtype=torch.float64)
        """By bin: all voxels, and those predicted to be a structure."""
        self.intensity: Tensor | None = None

    @torch.no_grad()
    def update(self, probabilities: Tensor, image: Tensor | None = None) -> None:
        """Add a slab of the image.

        Args:
            probabilities: ``(C, *n)`` class probabilities, any number of axes.
            image: ``(channels, *n)`` intensities as the network sees them, nominally in [0, 1]; ``None`` leaves the
                comparison of intensities out.

        Raises:
            ValueError: for another number of classes or channels, or values that are not finite or do not sum to 1.
                Nothing is added then.
        """
        flat = torch.as_tensor(probabilities).flatten(1).float()
        if flat.shape[0] != len(self.class_names):
            raise ValueError(f"probabilities: found {flat.shape[0]} classes, wanted {len(self.class_names)}")
        if flat.numel() == 0:
            return
        gap = float((flat.sum(0) - 1).abs().max())
        # A comparison with NaN is false, so that it is refused too.
        if not (gap <= _SUM_TOLERANCE and float(flat.min()) >= 0.0):
            raise ValueError(
                "probabilities: found values that are not finite, negative or do not sum to 1 over classes"
            )
        channels = None if image is None else self._channels(image, flat.shape[1])
        confidence, prediction = flat.max(dim=0)
        structure = torch.ones_like(prediction, dtype=torch.bool)
        if self.background is not None:
            structure = prediction != self.background
        for row, values in enumerate((confidence, confidence[structure])):
            self.confidence[row] += _histogram(values)
        number = len(self.class_names)
        doubtful = torch.bincount(prediction[confidence < LOW_CONFIDENCE], minlength=number)
        sums = torch.bincount(prediction, weights=confidence.double(), minlength=number)
        for k in self.classes:
            add_voxels(self.inside[k], self.outside[k], flat[k], prediction == k)
            self.doubtful[k] += int(doubtful[k])
            self.confidence_sum[k] += float(sums[k])
        self.voxels += flat.shape[1]
        if channels is not None:
            counts = torch.stack([_histogram(channel) for channel in channels])
            self.intensity = counts if self.intensity is None else self.intensity + counts

    def result(self) -> dict[str, Any]:
        """Return everything as plain numbers, ready for JSON; what it means is told in ``docs/trust.md``.

        Raises:
            ValueError: if nothing was added.
        """
        if self.voxels == 0:
            raise ValueError("no voxel was added")
        classes = {self.class_names[k]: self._class(k) for k in self.classes}
        dice = [c["expected_dice"] for c in classes.values() if c["expected_dice"] is not None]
        predicted = sum(self.inside[k].voxels() for k in self.classes)
        distribution = self._distribution()
        intensity = None if self.intensity is None else [[int(n) for n in row] for row in self.intensity]
        return {
            "schema": SCHEMA,
            "level": LEVEL,
            "unit": self.unit,
            "low_confidence_below": LOW_CONFIDENCE,
            "class_names": list(self.class_names),
            "background": self.background,
            "mean_expected_dice": sum(dice) / len(dice) if dice else None,
            "low_confidence_share": sum(self.doubtful.values()) / predicted if predicted else None,
            "classes": classes,
            "confidence_histogram": {
                "all": [int(n) for n in self.confidence[0]],
                "foreground": [int(n) for n in self.confidence[1]],
            },
            "intensity_histogram": intensity,
            "out_of_distribution": distribution,
            "warnings": self._warnings(classes, distribution),
        }

    def _channels(self, image: Tensor, voxels: int) -> Tensor:
        channels = torch.as_tensor(image).flatten(1).float()
        known: Sequence[Any] | Tensor = channels if self.intensity is None else self.intensity
        if self.reference is not None:
            known = self.reference["intensity"]["mean"]
        if channels.shape != (len(known), voxels):
            raise ValueError(f"image: found {tuple(channels.shape)} channels x voxels, wanted {(len(known), voxels)}")
        if not bool(torch.isfinite(channels).all()):
            raise ValueError("image: found values that are not finite")
        return channels

    def _spread(self, k: int) -> Spread:
        shifts = [] if self.reference is None else self.reference["shifts"][self.class_names[k]]
        return fit_spread(shifts)

    def _class(self, k: int) -> dict[str, Any]:
        inside, outside, spread = self.inside[k], self.outside[k], self._spread(k)
        predicted = inside.voxels()
        dice, volume = intervals(inside, outside, spread)
        return {
            "expected_dice": expected_dice(inside, outside),
            "expected_dice_interval": None if dice is None else list(dice),
            "predicted_volume": predicted * self.voxel_volume,
            "expected_volume": float(inside.total.sum() + outside.total.sum()) * self.voxel_volume,
            "expected_volume_interval": [bound * self.voxel_volume for bound in volume],
            "low_confidence_share": self.doubtful[k] / predicted if predicted else None,
            "mean_confidence": self.confidence_sum[k] / predicted if predicted else None,
            "interval_from_cases": spread.cases,
        }

    def _distribution(self) -> dict[str, Any]:
        if self.reference is None:
            return {"assessed": False, "unusual": None, "tests": {}}
        found = {"confidence": shares(self.confidence[1].numpy())}
        if self.intensity is not None:
            found["intensity"] = shares(self.intensity.numpy())
        tests = {}
        for name, histogram in found.items():
            usual = self.reference[name]
            gap = distance(histogram, np.asarray(usual["mean"], dtype=np.float64))
            tests[name] = {
                "distance": gap,
                "threshold": usual["threshold"],
                "p_value": p_value(gap, usual["distances"]),
                "unusual": gap > usual["threshold"],
            }
        return {"assessed": True, "unusual": any(test["unusual"] for test in tests.values()), "tests": tests}

    def _warnings(self, classes: Mapping[str, Mapping[str, Any]], distribution: Mapping[str, Any]) -> list[str]:
        messages = []
        what = {
            "intensity": "the image's intensities are unlike those of the images that the model was adapted to",
            "confidence": "the model's confidence is unlike that on the images that it was adapted to",
        }
        for name, test in distribution["tests"].items():
            if test["unusual"]:
                numbers = f"distance {test['distance']:.3f}, usual up to {test['threshold']:.3f}"
                messages.append(f"out of distribution: {what[name]} ({numbers})")
        absent = [name for name, values in classes.items() if not values["predicted_volume"]]
        if absent:
            messages.append(f"{', '.join(absent)}: found nowhere in this image")
        return messages


def _histogram(values: Tensor) -> Tensor:
    index = (values * BINS).long().clamp(0, BINS - 1)
    return torch.bincount(index, minlength=BINS).double().cpu()


def _check_reference(reference: Mapping[str, Any], class_names: Sequence[str], background: int | None) -> None:
    wanted = {"schema": SCHEMA, "class_names": list(class_names), "background": background, "bins": BINS}
    for key, value in wanted.items():
        if reference.get(key) != value:
            raise ValueError(f"trust reference, {key!r}: found {reference.get(key)!r}, wanted {value!r}")
    for key in ("intensity", "confidence", "shifts"):
        if key not in reference:
            raise ValueError(f"trust reference: found no {key!r}")
