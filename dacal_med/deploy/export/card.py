# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The model card of an exported folder: what the network is for, what was measured of it, and what was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dacal_med.deploy.export.checking import MAX_DIFFERENCE, MIN_SAME_LABELS
from dacal_med.deploy.export.deployed import Deployed
from dacal_med.deploy.runtime.model import background_class

# Scores of `dacal_med.core.scores` that a site reads, and what they mean.
_SCORES = {
    "dice": "mean Dice{without}",
    "ece": "expected calibration error (top label, 15 bins)",
    "foreground_ece": "the same over foreground voxels",
    "nll": "negative log-likelihood (nats)",
    "brier": "Brier score",
}
_NEVER_MEASURED = (
    "on images of another scanner, camera, protocol, place or population than the evaluation cases'",
    "by groups of cases, such as age and sex of patients",
    "against a second reader",
    "as a part of anyone's work: time, decisions, outcomes",
)


def model_card(
    deployed: Deployed,
    scores: Mapping[str, Any] | None,
    weights_digest: str,
    data: str | None,
    sizes: Sequence[Sequence[int]],
    smallest: Sequence[int],
    trust: bool,
) -> str:
    """Return the card as Markdown.

    Args:
        deployed: what is exported.
        scores: of the network on the labelled evaluation cases, as of :func:`dacal_med.core.scores.summarise_run`;
            ``None`` if nothing was measured.
        weights_digest: SHA-256 of the weights file that training wrote.
        data: name of the data set of the training run, if known.
        sizes: shapes of the batches that the formats were compared on.
        smallest: image that ``model.pt2`` takes.
        trust: whether the folder says what is usual for the model.
    """
    meta = deployed.metadata
    form = meta["network_data_format"]["inputs"]["image"]
    spacing = " x ".join(f"{float(s):g}" for s in deployed.config["spacing"])
    window = " x ".join(map(str, deployed.roi_size))
    rows = "\n".join(f"| {k} | {name} |" for k, name in enumerate(deployed.class_names))
    references = "\n".join(f"- {reference}" for reference in meta.get("references", []))
    shapes = ", ".join("x".join(map(str, shape)) for shape in sizes)
    least = " x ".join(map(str, smallest))
    usual = (
        "`configs/trust.json` says what is usual for the model (intensities, confidence, how far cases are misjudged)."
        if trust
        else "There is no `configs/trust.json`: whether an image is unlike those of the adaptation is not assessed."
    )
    return f"""# {meta["name"]}

{meta["description"]}

- Version: {meta["version"]}; weights (SHA-256 of the file that training wrote): `{weights_digest}`
- Task: {meta["task"]}
- Intended use: {meta["intended_use"]}
- Licence: Apache-2.0 (`LICENSE`), {meta["copyright"]}; the data it was trained on have terms of their own

## Labels

| Value | Meaning |
|---|---|
{rows}

## Input

{form["num_channels"]} channel(s), {form["modality"]}; {meta["image_classes"]}.
Resampled to {spacing} (mm; 1 for pictures), seen in windows of {window} voxels.
Preprocessing, windows and postprocessing: `configs/inference.json`.

## Training

Labelled images of the source domain and unlabelled images of the target domain; no label of the target was used.
{_data(data)} Data as the bundle declares them: {meta["data_source"]}.

{references}

## Measured

{_measured(scores, deployed.class_names)}

## Limits

- It knows the labels above and nothing else: whatever else is in an image is given one of them.
- It was adapted to the images of one target domain. Elsewhere both segmentation and confidence can be wrong. {usual}
- Confidence is calibrated on average over voxels, not for every voxel, case or class; the table says how far.
- Not measured: {"; ".join(_NEVER_MEASURED)}.

## Files

- `models/`: `model.pt` (weights), `model.ts` (TorchScript, with metadata and a MONAI-only `inference.json` inside),
  `model.pt2` (`torch.export`, images of at least {least}), `model.onnx`; batch size and image size are
  free in all of them, as far as the network takes them. Each was loaded again and compared with the trained network on
  real images ({shapes}):
  the same label on at least {MIN_SAME_LABELS:.2%} of the voxels, probabilities within {MAX_DIFFERENCE:.0e}.
- `configs/`: `inference.json`, `metadata.json`, `logging.conf`, `deploy.json` (what is inside `model.ts`).
- `wheels/`: the code that the export was made with, which runs it.
- `requirements.txt` (the wheel and what it needs), `sbom.cdx.json` (CycloneDX): packages in exact versions.
- `SHA256SUMS`: `python -m dacal_med.deploy.runtime.checksums` or `sha256sum -c SHA256SUMS`, in this folder, tells
  whether a file was changed.
"""


def _data(data: str | None) -> str:
    return "Of which data set is not recorded." if data is None else f"Data set of this export: {data}."


def _measured(scores: Mapping[str, Any] | None, names: Sequence[str]) -> str:
    if scores is None:
        return (
            "Nothing: no scores came with the weights, or their run had no labelled target cases. Neither Dice nor "
            "calibration of this network is known."
        )
    cases = scores.get("per_case", {})
    number = max((entry["n"] for entry in cases.values()), default=0)
    lines = [
        f"On {number} labelled target cases that training did not see (`target_val`), at working resolution, "
        "pooled over voxels.",
        "",
        "| Score | Pooled | Mean ± standard deviation over cases |",
        "|---|---|---|",
    ]
    without = "" if background_class(names) is None else ", background left out"
    for key, title in _SCORES.items():
        lines.append(f"| {title.format(without=without)} | {_number(scores.get(key))} | {_spread(cases.get(key))} |")
    lines += ["", "| Class | Dice | IoU | ECE (one against rest) | NLL | Voxels |", "|---|---|---|---|---|---|"]
    for name in names:
        row = scores.get("per_class", {}).get(name, {})
        values = " | ".join(_number(row.get(key)) for key in ("dice", "iou", "ece", "nll"))
        lines.append(f"| {name} | {values} | {row.get('voxels', 'not measured')} |")
    regions = scores.get("regions", {})
    if regions:
        lines += ["", "| Union of classes | Dice, pooled | Mean ± standard deviation over cases | Voxels |"]
        lines.append("|---|---|---|---|")
    for name, row in regions.items():
        spread = _spread(row.get("per_case", {}).get("dice"))
        lines.append(f"| {name} | {_number(row.get('dice'))} | {spread} | {row.get('voxels', 'not measured')} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _spread(entry: Mapping[str, Any] | None) -> str:
    if not entry or entry["mean"] is None:
        return "not measured"
    spread = "" if entry["std"] is None else f" ± {entry['std']:.2g}"
    return f"{entry['mean']:.4g}{spread} ({entry['n']} cases)"
