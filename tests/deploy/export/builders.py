# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Bundles with tiny networks of random weights, and what training would have left beside them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from dacal_med.deploy.export import convert
from dacal_med.deploy.export.exporting import Export
from tests.bundles.builders import BUNDLES, Bundle

FIRST = BUNDLES["dacal_em"]


def words(bundle: Bundle) -> tuple[tuple[str, str], ...]:
    """The overrides of a tiny training run, as typed."""
    return tuple((key, str(value)) for key, value in bundle.tiny.items())


def scores(names: list[str]) -> dict[str, Any]:
    """A ``metrics.json`` with numbers that are easy to find again; what is missing was not measured."""
    entry = {"dice": 0.8125, "iou": 0.6875, "ece": 0.03125, "nll": 0.4375, "voxels": 4096}
    per_class = {name: {**entry, "dice": 0.5 + k / 64} for k, name in enumerate(names)}
    per_case = {"dice": {"mean": 0.59375, "std": 0.0625, "n": 2}}
    regions = {"all of them": {"dice": 0.703125, "voxels": 8192, "per_case": per_case}}
    overall = {"dice": 0.609375, "ece": 0.015625, "nll": 0.25}
    return {"after": {**overall, "per_class": per_class, "per_case": per_case, "regions": regions}}


def make_run(bundle: Bundle, folder: Path) -> Path:
    """Write weights of a tiny network, as a training run does.

    Returns:
        The weights file; ``data`` beside it holds what is generated.
    """
    bundle.make_data(folder / "data", num_source=6, num_target_val=4)
    names = bundle.classes
    parser = ConfigParser(bundle.load("inference"))
    parser.update({**bundle.tiny, "num_classes": len(names), "bundle_root": str(bundle.folder)})
    torch.manual_seed(1)
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    spacing = [bundle.phantom.get("spacing_mm", 1.0)] * bundle.spatial_dims
    task = {"class_names": names, "num_classes": len(names), "spacing": spacing, "roi_size": bundle.tiny["roi_size"]}
    task["seed"] = 0
    (folder / "model.json").write_text(json.dumps(task))
    (folder / "metrics.json").write_text(json.dumps(scores(names)))
    return folder / "model.pt"


def exported(bundle: Bundle, model_file: Path, out: Path, **options: Any) -> Export:
    """An export of a tiny run."""
    given = {"dataset_dir": model_file.parent / "data", "overrides": words(bundle), **options}
    return Export(bundle=bundle.folder, out=out, model_file=model_file, **given)


def convert_here(folder: Path) -> None:
    """Convert in this process, which saves the seconds of starting another; the bytes are another matter."""
    disabled = logging.root.manager.disable
    try:
        convert.main([str(folder)])
    finally:
        logging.disable(disabled)  # a conversion is silent, and has a process of its own outside tests


def label_as_cases(data: Path) -> Path:
    """Make a data set of labelled cases of a phantom's evaluation images."""
    content = json.loads((data / "datalist.json").read_text())
    path = data / "cases.json"
    path.write_text(json.dumps({"labels": content["labels"], "cases": content["target_val"]}))
    return path
