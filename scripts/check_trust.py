# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""How good are the trust numbers? Expected against true Dice and volume on labelled target images, by model.

Each model gets its reference from unlabelled target images and held-out source cases, as an export does; the labels of
`target_val` are used here alone, to check. Prints a table and writes every number as JSON.

    python scripts/check_trust.py --config_file bundles/dacal_ct2mr/configs/train.json --dataset_dir DIR \\
        --model hard=RUN/model.pt --model dacal=RUN/model.pt --seed 10 --json FILE [--key value ...]

Beside the numbers that a site gets it shows what they are compared with: `corrected`, the expected Dice after the mean
shift of the held-out source cases is taken off (the class-specific difference of confidences of Li et al., MICCAI 2022,
on the logit), and `source mean`, the mean true Dice on held-out source for every case. Intervals: `independent` voxels,
`assumed` without a reference, `cases` with it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fire.parser import DefaultParseValue
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from dacal_med.core.tensors import plain
from dacal_med.deploy.export.trust_reference import TrainedModel, reference_of
from dacal_med.deploy.runtime.trust import TrustAccumulator
from dacal_med.deploy.runtime.trust_effects import Spread, expected_dice, fit_spread, intervals
from dacal_med.io.errors import InputError
from dacal_med.io.files import write_json
from dacal_med.transforms.labels import IGNORE_INDEX

INDEPENDENT = Spread(((1e-12, 0.0), (0.0, 1e-12)), 200, 0)
KINDS = ("independent", "assumed", "cases")


@dataclass(frozen=True)
class Case:
    """One labelled case of one class.

    Attributes:
        trust: what the probabilities say.
        k: the class.
        hit: true positives.
        true: voxels of the class in truth.
    """

    trust: TrustAccumulator
    k: int
    hit: float
    true: float

    def true_dice(self) -> float:
        return 2 * self.hit / (self.trust.inside[self.k].voxels() + self.true)

    def expected(self, shift: tuple[float, float] = (0.0, 0.0)) -> float:
        """Return the expected Dice, after a common shift of the logits inside and outside the mask."""
        inside, outside = self.trust.inside[self.k], self.trust.outside[self.k]
        if shift == (0.0, 0.0):
            return expected_dice(inside, outside) or 0.0
        hit = float(inside.expected(torch.tensor(shift[0]))[0])
        missed = float(outside.expected(torch.tensor(shift[1]))[0])
        return 2 * hit / (inside.voxels() + hit + missed)

    def expected_voxels(self, shift: tuple[float, float] = (0.0, 0.0)) -> float:
        """Return the expected number of voxels of the class, after a common shift of the logits."""
        pair = zip((self.trust.inside[self.k], self.trust.outside[self.k]), shift, strict=True)
        return sum(float(histogram.expected(torch.tensor(s))[0]) for histogram, s in pair)

    def covered(self, spread: Spread) -> tuple[bool, bool, float, float]:
        """Return whether the intervals of Dice and of the voxel count hold the truth, and their widths (relative)."""
        dice, voxels = intervals(self.trust.inside[self.k], self.trust.outside[self.k], spread)
        low, high = (0.0, 0.0) if dice is None else dice
        hit, held = low <= self.true_dice() <= high, voxels.low <= self.true <= voxels.high
        return hit, held, high - low, (voxels.high - voxels.low) / max(self.true, 1.0)


def labelled_cases(model: TrainedModel, entries: Iterable[Mapping[str, Any]], intensity: str) -> dict[str, list[Case]]:
    """Predict labelled images; return their cases by class, without those where neither truth nor prediction has it."""
    read = model.preprocessing(labelled=True, intensity=intensity)
    result: dict[str, list[Case]] = {}
    for entry in entries:
        item = read(dict(entry))
        image, label = plain(item["image"]), plain(item["label"]).long()[0]
        known = label != IGNORE_INDEX
        probabilities, truth = model.predict(image)[:, known], label[known]
        trust = TrustAccumulator(model.class_names, 1.0, background=model.background)
        trust.update(probabilities)
        prediction = probabilities.argmax(dim=0)
        for k in trust.classes:
            hit, true = float(((truth == k) & (prediction == k)).sum()), float((truth == k).sum())
            if true or trust.inside[k].voxels():
                result.setdefault(model.class_names[k], []).append(Case(trust, k, hit, true))
    return result


def summarise(cases: Sequence[Case], shifts: Sequence[Any], source: Sequence[Case]) -> dict[str, Any]:
    """Return errors of the estimates and coverage of the intervals of one class."""
    true = np.array([case.true_dice() for case in cases])
    mean = np.mean([np.mean(views, axis=0) for views in shifts], axis=0)
    estimates = {
        "expected": np.array([case.expected() for case in cases]),
        "corrected": np.array([case.expected((float(mean[0]), float(mean[1]))) for case in cases]),
        "source mean": np.full(len(cases), np.mean([case.true_dice() for case in source])),
    }
    spreads = {"independent": INDEPENDENT, "assumed": fit_spread([]), "cases": fit_spread(shifts)}
    volume = np.array([case.true for case in cases])
    volumes = {
        "expected": [case.expected_voxels() for case in cases],
        "corrected": [case.expected_voxels((float(mean[0]), float(mean[1]))) for case in cases],
        "predicted": [case.trust.inside[case.k].voxels() for case in cases],
    }
    return {
        "cases": len(cases),
        "true_dice": true.tolist(),
        "expected_dice": estimates["expected"].tolist(),
        "estimates": {name: _errors(values, true) for name, values in estimates.items()},
        "volumes": {
            name: {
                "mae": float(np.mean(np.abs(np.array(values) - volume)) / volume.mean()),
                "bias": float(np.mean(np.array(values) - volume) / volume.mean()),
            }
            for name, values in volumes.items()
        },
        "mean_shift": mean.tolist(),
        "intervals": {name: _coverage([case.covered(spreads[name]) for case in cases]) for name in KINDS},
        "source_left_out": _coverage(
            [
                case.covered(fit_spread([views for j, views in enumerate(shifts) if j != i]))
                for i, case in enumerate(source)
            ]
            if len(shifts) == len(source)
            else []
        ),
    }


def _errors(estimate: np.ndarray, true: np.ndarray) -> dict[str, float | None]:
    varied = len(true) > 2 and np.ptp(estimate) > 0 and np.ptp(true) > 0
    return {
        "mae": float(np.mean(np.abs(estimate - true))),
        "bias": float(np.mean(estimate - true)),
        "pearson": float(np.corrcoef(estimate, true)[0, 1]) if varied else None,
        "spearman": float(spearmanr(estimate, true).statistic) if varied else None,
    }


def _coverage(rows: Sequence[tuple[bool, bool, float, float]]) -> dict[str, float] | None:
    if not rows:
        return None
    names = ("dice", "volume", "dice_width", "volume_width")
    return dict(zip(names, np.mean(np.array(rows, dtype=float), axis=0).tolist(), strict=True))


def alarms(model: TrainedModel, reference: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Return the share of images that are called out of distribution: usual ones, the source's, and spoilt ones."""
    read = model.preprocessing(labelled=False, intensity="target_intensity")
    datalist = model.get("datalist")
    usual = [plain(read(dict(entry))["image"]).float() for entry in datalist.target_val]
    source = [plain(read(dict(entry))["image"]).float() for entry in model.get("source_split")[1]]
    generator = torch.Generator().manual_seed(0)
    groups = {
        "target_val": usual,
        "source, read as target": source,
        "inverted": [1 - image for image in usual],
        "noise 0.2": [(i + 0.2 * torch.randn(i.shape, generator=generator)).clamp(0, 1) for i in usual],
        "blurred 5 voxels": [_blurred(image) for image in usual],
    }
    return {name: _alarm_rates(model, reference, images) for name, images in groups.items()}


def _alarm_rates(model: TrainedModel, reference: Mapping[str, Any], images: Sequence[Tensor]) -> dict[str, float]:
    rows = []
    for image in images:
        trust = TrustAccumulator(model.class_names, 1.0, reference, model.background)
        trust.update(model.predict(image), image)
        found = trust.result()["out_of_distribution"]
        rows.append({"either": found["unusual"], **{n: test["unusual"] for n, test in found["tests"].items()}})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _blurred(image: Tensor) -> Tensor:
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[image.dim() - 1]
    return pool(image[None], 5, stride=1, padding=2, count_include_pad=False)[0]


def check(model: TrainedModel) -> dict[str, Any]:
    """Return all numbers of one model."""
    reference = reference_of(model)
    target = labelled_cases(model, model.get("datalist").target_val, "target_intensity")
    source = labelled_cases(model, model.get("source_split")[1], "source_intensity")
    shifts = reference["shifts"]
    by_class = {name: summarise(cases, shifts[name], source[name]) for name, cases in target.items()}
    return {"classes": by_class, "alarms": alarms(model, reference)}


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the numbers as Markdown tables."""
    lines = [
        "| model | class | true Dice | estimate | MAE | bias | Pearson | Spearman |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for label, row in result["classes"].items():
            for kind, e in row["estimates"].items():
                numbers = f"{e['mae']:.3f} | {e['bias']:+.3f} | {_number(e['pearson'])} | {_number(e['spearman'])}"
                lines.append(f"| {name} | {label} | {np.mean(row['true_dice']):.3f} | {kind} | {numbers} |")
    lines += ["", "| model | class | volume | MAE, relative | bias, relative |", "|---|---|---|---|---|"]
    for name, result in results.items():
        for label, row in result["classes"].items():
            for kind, e in row["volumes"].items():
                lines.append(f"| {name} | {label} | {kind} | {e['mae']:.3f} | {e['bias']:+.3f} |")
    lines += [
        "",
        "| model | class | interval | Dice covered | width | volume covered | width, relative |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for label, row in result["classes"].items():
            for kind, c in {**row["intervals"], "source, left out": row["source_left_out"]}.items():
                if c is not None:
                    numbers = f"{c['dice']:.2f} | {c['dice_width']:.3f} | {c['volume']:.2f} | {c['volume_width']:.2f}"
                    lines.append(f"| {name} | {label} | {kind} | {numbers} |")
    lines += ["", "| model | images | called unusual | by intensity | by confidence |", "|---|---|---|---|---|"]
    for name, result in results.items():
        for group, rate in result["alarms"].items():
            numbers = f"{rate['either']:.2f} | {rate['intensity']:.2f} | {rate['confidence']:.2f}"
            lines.append(f"| {name} | {group} | {numbers} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check models and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("--config_file", nargs="+", required=True, help="the bundle's train.json, and overlays")
    parser.add_argument("--dataset_dir", required=True, help="folder with datalist.json")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FILE", help="name and weights; repeat")
    parser.add_argument("--seed", type=int, required=True, help="of the training runs")
    parser.add_argument("--json", type=Path, help="where every number goes")
    options, rest = parser.parse_known_args(arguments)
    if len(rest) % 2 or any(not key.startswith("--") for key in rest[::2]):
        raise InputError(f"command line: found {rest}, wanted --key value")
    overrides = {key[2:]: DefaultParseValue(value) for key, value in zip(rest[::2], rest[1::2], strict=True)}
    results = {}
    for item in options.model:
        name, _, file = item.partition("=")
        model = TrainedModel(options.config_file, file, options.dataset_dir, options.seed, overrides)
        results[name] = check(model)
    if options.json is not None:
        write_json(options.json, json.loads(json.dumps(results)))
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
