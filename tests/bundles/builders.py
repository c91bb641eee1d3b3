# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Tiny runs of the bundles: a small phantom, a small network, two iterations an epoch."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dacal_med.data import ensure_phantom
from dacal_med.data.phantom_kinds import KINDS
from dacal_med.data.street_labels import TRAIN_NAMES
from dacal_med.preparation import ensure_streets
from dacal_med.preparation.sets.street_tables import SYNTHIA_16
from tests.conftest import ROOT

NETWORK = {"network_def#channels": [4, 8], "network_def#strides": [2], "network_def#num_res_units": 1}


# A Mix Transformer of a few thousand parameters, as options of the driving bundles' network.
TINY_MIT = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
}
STREET_NETWORK = {"network_def#encoder_options": TINY_MIT, "network_def#head_options": {"channels": 8}}


@dataclass(frozen=True)
class Bundle:
    """A bundle, and how it is tried in seconds.

    Attributes:
        name: its folder.
        kind: of phantom, or the task of generated streets.
        spatial_dims: axes of its images.
        in_channels: channels of its images.
        phantom: size of the small phantom.
        network: overrides that make the network small.
        roi: edge of the small crops.
        streets: whether the data are streets and not a phantom.
        classes: names by channel.
        target: folder of the target's images in the generated data.
    """

    name: str
    kind: str
    spatial_dims: int
    in_channels: int
    phantom: Mapping[str, Any]
    network: Mapping[str, Any] = field(default_factory=lambda: NETWORK)
    roi: int = 16
    streets: bool = False

    @property
    def classes(self) -> list[str]:
        if not self.streets:
            return list(KINDS[self.kind].labels.values())
        return list(SYNTHIA_16 if self.kind == "synthia2cityscapes" else TRAIN_NAMES)

    @property
    def target(self) -> str:
        return "target" if self.streets else KINDS[self.kind].domains[1]

    def make_data(self, folder: Path, **more: int) -> str:
        """Generate a few small cases, of some splits more."""
        counts = {"num_source": 4, "num_target_train": 3, "num_target_val": 2, **more}
        if self.streets:
            return ensure_streets(folder, task=self.kind, **counts, **self.phantom)
        return ensure_phantom(folder, kind=self.kind, **counts, **self.phantom)

    @property
    def folder(self) -> Path:
        return ROOT / "bundles" / self.name

    @property
    def configs(self) -> Path:
        return self.folder / "configs"

    @property
    def tiny(self) -> dict[str, Any]:
        """Overrides that make everything small."""
        return {**self.network, "roi_size": [self.roi] * self.spatial_dims}

    @property
    def quick(self) -> dict[str, Any]:
        """Overrides for a training run of four iterations."""
        return {**self.tiny, "epoch_length": 2, "warmup_epochs": 1, "max_epochs": 2}

    def load(self, name: str) -> dict[str, Any]:
        """One of its configurations, as written."""
        return json.loads((self.configs / f"{name}.json").read_text())


BUNDLES = {
    bundle.name: bundle
    for bundle in (
        Bundle("dacal_ct2mr", "abdomen", 3, 1, {"image_size": (24, 20, 16), "spacing_mm": 15.0}),
        Bundle("dacal_site2site", "prostate", 3, 1, {"image_size": (24, 24, 16), "spacing_mm": 5.0}),
        Bundle("dacal_brats", "brain_tumour", 3, 1, {"image_size": (24, 24, 20), "spacing_mm": 7.5}),
        Bundle("dacal_em", "mitochondria", 2, 1, {"image_size": (72, 64)}),
        Bundle("dacal_fundus", "disc_cup", 2, 3, {"image_size": (72, 64)}),
        *(
            Bundle(f"dacal_{task}", task, 2, 3, {"image_size": (72, 96)}, STREET_NETWORK, roi=64, streets=True)
            for task in ("gta2cityscapes", "synthia2cityscapes", "cityscapes2acdc", "cityscapes2darkzurich")
        ),
    )
}
# One of those of streets for all: their network is the same.
EXPORTED = {name: bundle for name, bundle in BUNDLES.items() if not bundle.streets or name == "dacal_gta2cityscapes"}
FIRST, STREETS = BUNDLES["dacal_ct2mr"], BUNDLES["dacal_gta2cityscapes"]
BUNDLE, CONFIGS, TINY, QUICK = FIRST.folder, FIRST.configs, FIRST.tiny, FIRST.quick
# The same in every bundle, byte by byte.
PUBLISHED = ("published.json", "published_hrda.json", "published_mic.json", "published_inference.json")
# The same in every medical bundle, but for the size of HRDA's crops.
HOST_OVERLAYS = ("mic.json", "daformer.json", "hrda.json")
SHARED = ("evaluate.json", "hard_labels.json", "source_only.json", "multi_gpu_train.json", "logging.conf")


REGIONS = {
    "dacal_brats": ["whole tumour", "tumour core", "enhancing tumour"],
    "dacal_fundus": ["whole disc", "optic cup"],
}


def configs(*names: str, bundle: Bundle = FIRST) -> str | list[str]:
    """Configuration files by name, as ``monai.bundle run`` takes them."""
    files = [str(bundle.configs / f"{name}.json") for name in names]
    return files[0] if len(files) == 1 else files


def command(*names: str, relative_to: Path | None = None, bundle: Bundle = FIRST, **overrides: object) -> list[str]:
    """A command line; file names are given relative to a folder where one is named."""
    base = bundle.configs if relative_to is None else bundle.configs.relative_to(relative_to)
    files = [str(base / f"{name}.json") for name in names]
    config = files[0] if len(files) == 1 else str(files)
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
    for key, value in overrides.items():
        line += [f"--{key}", str(value)]
    return line


def check_outputs(bundle: Bundle, folder: Path, stdout: str, stderr: str) -> None:
    """Check all that a training of four iterations promises to write and say."""
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics) == {"before", "after", "seconds", "peak_memory_mib", "skipped"}
    assert list(metrics["after"]["per_class"]) == bundle.classes
    assert list(metrics["after"].get("regions", {})) == REGIONS.get(bundle.name, [])
    assert metrics["before"]["voxels"] == metrics["after"]["voxels"] > 0
    checkpoints = [f"checkpoint_iteration={iteration}.pt" for iteration in (2, 4)]
    assert sorted(path.name for path in (folder / "checkpoints").glob("*.pt")) == checkpoints
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "cases.csv").is_file()
    assert (folder / "reliability.png").is_file()
    task = json.loads((folder / "model.json").read_text())
    assert task["num_classes"] == len(bundle.classes)
    assert task["seed"] == 0
    spacing = (1.0, 1.0)
    if not bundle.streets:
        spacing = KINDS[bundle.kind].spacing(bundle.phantom.get("spacing_mm")) or spacing
    assert task["spacing"] == pytest.approx(spacing, rel=0.1)
    # Streets have no background: everything is foreground.
    assert ("foreground ECE" in stdout) != bundle.streets
    assert "4/4" in stderr
    assert "Traceback" not in stderr
