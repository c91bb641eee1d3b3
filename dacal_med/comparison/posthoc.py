# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Post-hoc calibration of a trained network: one pass of predictions, every calibrator, the same scores."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor, nn

from dacal_med.comparison.calibrators import Calibrator, Prediction, fit_temperature, fit_vector
from dacal_med.comparison.local_temperature import fit_local_temperature
from dacal_med.comparison.methods import CALIBRATORS
from dacal_med.comparison.pseudocal import pseudo_target
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.tensors import plain
from dacal_med.engines.evaluator import CalibrationEvaluator, predict_probabilities
from dacal_med.handlers.adaptation import peak_memory_mib
from dacal_med.handlers.sums import save_sums
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json

MAX_VOXELS_PER_IMAGE = 2**21
DONE = "calibrated.json"


class PostHocCalibration:
    """Fits calibrators to a trained network and measures each on the evaluator's cases.

    Calibrators are fitted on held-out source images or on mixed target images, as their definitions say; only
    ``ts_oracle`` sees target labels, as a bound. Each writes ``metrics.json`` (``before`` without calibrator, ``after``
    with it), ``statistics.pt`` and ``calibrator.json`` into its folder.

    Args:
        folders: where each calibrator's results go, by its name in
            :data:`~dacal_med.comparison.methods.CALIBRATORS`.
        evaluator: cases, inferer and settings of the measurement.
        network: the trained network.
        held_out: labelled source items ``{"image", "label"}`` that the network has not trained on.
        target: unlabelled target items ``{"image"}``.
        output_dir: where ``calibrated.json`` goes, what was fitted for all, when everything is done.
        seed: of voxels drawn, images mixed and crops.

    Raises:
        InputError: for an unknown calibrator, or without held-out source where one is fitted on it.
    """

    def __init__(
        self,
        folders: Mapping[str, str],
        evaluator: CalibrationEvaluator,
        network: nn.Module,
        held_out: Sequence[Mapping[str, Any]],
        target: Sequence[Mapping[str, Any]],
        output_dir: str | Path,
        seed: int = 0,
    ) -> None:
        unknown = [name for name in folders if name not in CALIBRATORS]
        if unknown or not folders:
            raise InputError(f"calibrators: found {list(folders)}, wanted some of {list(CALIBRATORS)}")
        if not len(held_out) and {"ts", "vs", "lts"} & set(folders):
            raise InputError("held_out_share: found no held-out source case, wanted some: calibrators are fitted on it")
        self.folders = {name: Path(folder) for name, folder in folders.items()}
        self.evaluator = evaluator
        self.network = network
        self.held_out = held_out
        self.target = target
        self.output_dir = Path(output_dir)
        self.seed = seed

    def run(self) -> None:
        """Fit, measure and write."""
        self.network.eval()
        fitted, seconds = {}, {}
        for name in self.folders:
            start = time.monotonic()
            fitted[name] = self._fit(name)
            seconds[name] = time.monotonic() - start
        start = time.monotonic()
        cases, groups = self._measure(fitted)
        shared = time.monotonic() - start
        evaluator = self.evaluator
        before = evaluator.summarise(cases[""], groups)
        for name, calibrator in fitted.items():
            folder = self.folders[name]
            save_sums(
                folder / "statistics.pt",
                cases[name],
                evaluator.class_names,
                groups,
                evaluator.class_subsets,
                evaluator.regions,
            )
            write_json(folder / "calibrator.json", calibrator.describe())
            metrics = {
                "before": before,
                "after": evaluator.summarise(cases[name], groups),
                "seconds": round(seconds[name] + shared, 1),
                "peak_memory_mib": round(peak_memory_mib(), 1),
            }
            write_json(folder / "metrics.json", metrics)
        write_json(self.output_dir / DONE, {name: c.describe() for name, c in fitted.items()})

    def _fit(self, name: str) -> Calibrator:
        options: dict[str, Any] = {"ignore_index": self.evaluator.ignore_index, "seed": self.seed}
        if name == "pseudocal":
            images = [self._bounded(self._image(item))[0] for item in self.target]
            # Every voxel: the fairer baseline, since without the agreeing background the network seems far less sure.
            mixed = pseudo_target(self._predict, images, seed=self.seed, differing_only=False)
            return fit_temperature(mixed, ignore_index=None, seed=self.seed)
        if name == "ts_oracle":
            return fit_temperature(self._predictions(self.evaluator.val_data), **options)
        if name == "ts":
            return fit_temperature(self._held_out_predictions, **options)
        if name == "vs":
            return fit_vector(self._held_out_predictions, **options)
        return fit_local_temperature(self._held_out_predictions, **options)

    @cached_property
    def _held_out_predictions(self) -> list[Prediction]:
        """Predicted once, for whichever calibrators are fitted on them."""
        return self._predictions(self.held_out)

    def _predictions(self, items: Sequence[Mapping[str, Any]]) -> list[Prediction]:
        """Predict whole images and keep a part of each that fits in memory, however large they are."""
        result = []
        for item in items:
            image = self._image(item)
            label = plain(item["label"]).unsqueeze(0).long()
            kept = self._bounded(self._predict(image).cpu(), image.cpu(), label.cpu())
            result.append(Prediction(*kept))
        return result

    def _bounded(self, *tensors: Tensor) -> list[Tensor]:
        """Cut the same random box of at most :data:`MAX_VOXELS_PER_IMAGE` voxels out of tensors of one size."""
        size = np.array(tensors[0].shape[2:])
        shrink = min(1.0, (MAX_VOXELS_PER_IMAGE / size.prod()) ** (1 / len(size)))
        box = np.maximum(1, (size * shrink).astype(int))
        first = np.random.default_rng(self.seed).integers(0, size - box + 1)
        part = (slice(None), slice(None), *(slice(a, a + n) for a, n in zip(first, box, strict=True)))
        return [tensor[part].clone() for tensor in tensors]

    def _measure(
        self, fitted: Mapping[str, Calibrator]
    ) -> tuple[dict[str, list[SegmentationStatistics]], list[str | None]]:
        """Return the sums of each case for every calibrator, those without any under the empty name, and the groups."""
        cases: dict[str, list[SegmentationStatistics]] = {name: [] for name in ("", *fitted)}
        groups = []
        for image, label, probabilities, group in self._evaluated():
            groups.append(group)
            for name in cases:
                calibrated = fitted[name](probabilities, image) if name else probabilities
                statistics = self.evaluator.new_statistics()
                statistics.update(calibrated, label)
                cases[name].append(statistics)
        return cases, groups

    def _evaluated(self) -> Iterator[tuple[Tensor, Tensor, Tensor, str | None]]:
        for index in range(len(self.evaluator.val_data)):
            item = self.evaluator.val_data[index]
            image = self._image(item)
            label = plain(item["label"]).unsqueeze(0).long().to(image.device)
            yield image, label, self._predict(image), item.get("group")

    def _image(self, item: Mapping[str, Any]) -> Tensor:
        return plain(item["image"]).unsqueeze(0).float().to(self.evaluator.state.device)

    def _predict(self, image: Tensor) -> Tensor:
        inferer: Inferer = self.evaluator.inferer
        with torch.no_grad(), torch.autocast(self.evaluator.state.device.type, enabled=self.evaluator.amp):
            return predict_probabilities(inferer, self.network, image)
