# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med calibrate``: a site's own labelled cases say how confident an exported network may be.

Temperature or vector scaling (Guo et al., ICML 2017, arXiv 1706.04599) inside the network, fitted to what inference
makes of its windows. Whether it helps is measured on cases that the fit did not see: of each patient, or fold, in turn.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dacal_med.comparison.calibrators import TemperatureScaling, VectorScaling
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.data.checking import check_data
from dacal_med.data.datalist import load_cases
from dacal_med.data.split import by_patient, patient_folds
from dacal_med.deploy.export.calibration_report import CalibrationReport, with_calibration
from dacal_med.deploy.export.checking import Predictor, check_formats, load_network
from dacal_med.deploy.export.deployed import read_json
from dacal_med.deploy.export.folder import building, convert
from dacal_med.deploy.export.labelled import LabelledCases
from dacal_med.deploy.export.layout import (
    CALIBRATION,
    CONFIGS,
    DEPLOY,
    DOCS,
    INFERENCE,
    METADATA,
    MODELS,
    TRUST,
    WEIGHTS,
)
from dacal_med.deploy.export.packages import require_converters
from dacal_med.deploy.export.volumes import try_out
from dacal_med.deploy.export.window_fit import WindowSample, fit_temperature, fit_vector
from dacal_med.deploy.runtime import checksums
from dacal_med.deploy.runtime.model import other_version
from dacal_med.handlers.weights import save_weights
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json
from dacal_med.networks import CalibratedNetwork

MIN_CASES = 3
"""With fewer patients, the difference on held-out cases has no usable interval."""
LEAVE_ONE_OUT = 10
"""Up to so many patients each is held out by itself; of more, a fifth at a time."""
FOLDS = 5
TARGET = "dacal_med.networks.CalibratedNetwork"

Fitted = TemperatureScaling | VectorScaling


@dataclass(frozen=True)
class Calibration:
    """What is to be calibrated, and on what.

    Attributes:
        site: an exported folder.
        dataset_dir: folder with a ``datalist.json`` of ``labels`` and ``cases``.
        out: the folder to make.
        per_class: fit a weight and a bias for each class; otherwise one temperature.
        seed: which voxels are drawn.
        always: write even if calibration did not get better.
        force: replace ``out`` if it is there.
    """

    site: Path
    dataset_dir: Path
    out: Path
    per_class: bool = False
    seed: int = 0
    always: bool = False
    force: bool = False

    def run(self) -> CalibrationReport:
        """Fit, measure on held-out cases, and write the folder if calibration got better.

        Returns:
            What was found.

        Raises:
            InputError: if the folder was changed since its export or is of another version, the cases do not fit it or
                are too few, or a format does not predict what the calibrated network does.
        """
        require_converters()
        checksums.verify(self.site)
        config = read_json(self.site / CONFIGS / DEPLOY)
        metadata = read_json(self.site / CONFIGS / METADATA)
        if told := other_version(metadata):
            raise InputError(f"{self.site}: {told}; wanted its own version, as its requirements.txt lists it")
        definition = metadata["network_data_format"]["outputs"]["pred"]["channel_def"]
        names = [definition[key] for key in sorted(definition, key=int)]
        datalist = load_cases(self.dataset_dir)
        if list(datalist.class_names) != names:
            raise InputError(
                f"{self.dataset_dir}: found the classes {', '.join(datalist.class_names)}, wanted those of "
                f"{self.site}: {', '.join(names)}"
            )
        patients = len(by_patient(datalist.source))
        if patients < MIN_CASES:
            found = f"found {len(datalist.source)} case(s)"
            found += f" of {patients} patient(s)" if patients < len(datalist.source) else ""
            raise InputError(f"{self.dataset_dir}: {found}, wanted {MIN_CASES} or more")
        check_data(datalist, int(config["spatial_dims"]), int(config["in_channels"]))
        network = load_network(self.site)
        cases = LabelledCases(config, datalist, network, self.seed)
        report, fitted = self._measure(cases, names)
        if report.written:
            self._write(config, cases, fitted, report)
        return report

    def _measure(self, cases: LabelledCases, names: list[str]) -> tuple[CalibrationReport, Fitted]:
        """Return what held-out cases say, and what was fitted on all cases."""
        before, samples = zip(*(cases.recorded(k) for k in range(len(cases))), strict=True)
        after: dict[int, SegmentationStatistics] = {}
        for fold in folds(cases.datalist.source):
            kept = [sample for k, sample in enumerate(samples) if k not in fold]
            network = calibrated(cases.base, self._fit(kept), len(names), cases.spatial_dims)
            after.update({k: cases.measured(k, network) for k in fold})
        fitted = self._fit(list(samples))
        report = CalibrationReport(
            names=tuple(names),
            fitted=fitted.describe(),
            held_out=held_out(cases.datalist.source),
            before=tuple(before),
            after=tuple(after[k] for k in range(len(cases))),
            always=self.always,
        )
        return report, fitted

    def _fit(self, samples: list[WindowSample]) -> Fitted:
        return fit_vector(samples) if self.per_class else fit_temperature(samples)

    def _write(self, config: dict[str, Any], cases: LabelledCases, fitted: Fitted, report: CalibrationReport) -> None:
        network = calibrated(cases.base, fitted, len(report.names), cases.spatial_dims)
        batches = try_out(network, config, [Path(entry["image"]) for entry in cases.datalist.source])
        with building(self.out, self.force) as folder:
            shutil.copytree(self.site, folder, dirs_exist_ok=True)
            for name in (DEPLOY, INFERENCE):
                content = read_json(folder / CONFIGS / name)
                content["network_def"] = wrapped(content["network_def"], len(report.names), cases.spatial_dims)
                write_json(folder / CONFIGS / name, content)
            # It describes the confidence of the network before.
            (folder / CONFIGS / TRUST).unlink(missing_ok=True)
            save_weights(network, folder / MODELS / WEIGHTS)
            convert(folder)
            check_formats(folder, by_definition(cases.base, fitted), batches)
            write_json(folder / DOCS / CALIBRATION, report.document())
            card = folder / DOCS / "README.md"
            card.write_text(with_calibration(card.read_text(encoding="utf-8"), report), encoding="utf-8")
            checksums.write(folder)


def folds(cases: Sequence[Mapping[str, str]]) -> list[list[int]]:
    """Return which cases are held out together: those of one patient, or of every fifth where there are many."""
    number = len(by_patient(cases))
    parts = number if number <= LEAVE_ONE_OUT else FOLDS
    fold_of = patient_folds(cases, parts)
    return [[k for k, own in enumerate(fold_of) if own == part] for part in range(parts)]


def held_out(cases: Sequence[Mapping[str, str]]) -> str:
    """Return in words what :func:`folds` holds out at a time."""
    patients = len(by_patient(cases))
    one, many = ("case", "cases") if patients == len(cases) else ("patient", "patients")
    return f"each {one}" if patients <= LEAVE_ONE_OUT else f"a fifth of the {many}"


def calibrated(base: nn.Module, fitted: Fitted, num_classes: int, spatial_dims: int) -> CalibratedNetwork:
    """Return a network whose logits are scaled as fitted, in eval mode."""
    network = CalibratedNetwork(base, num_classes, spatial_dims)
    if isinstance(fitted, TemperatureScaling):
        network.weight.fill_(1.0 / fitted.temperature)
    else:
        network.weight.copy_(torch.tensor(fitted.weight).view_as(network.weight))
        network.bias.copy_(torch.tensor(fitted.bias).view_as(network.bias))
    return network.eval()


def by_definition(base: nn.Module, fitted: Fitted) -> Predictor:
    """Return what the calibrated network must predict: the paper's scaling of logits, written out by class."""
    if isinstance(fitted, TemperatureScaling):
        return lambda image: base(image) / fitted.temperature
    weight, bias = torch.tensor(fitted.weight), torch.tensor(fitted.bias)
    return lambda image: (base(image).movedim(1, -1) * weight + bias).movedim(-1, 1)


def wrapped(definition: Any, num_classes: int, spatial_dims: int) -> dict[str, Any]:
    """Return the ``network_def`` of the calibrated network; one that is calibrated already is not wrapped twice."""
    inner = definition["network"] if definition.get("_target_") == TARGET else definition
    return {"_target_": TARGET, "network": inner, "num_classes": num_classes, "spatial_dims": spatial_dims}
