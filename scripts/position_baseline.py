# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a guess from position alone would score on a data set: the bar below which a segmentation has learned nothing.

Crops around an organ or a lesion show it in about the same place: a network can score without looking. The guess is
the share of source cases with each class at each relative position, times one gain for the foreground that gives the
highest mean Dice on the source itself. Nothing is fitted on the target. Prints one line of JSON, as in metrics.json.

    python scripts/position_baseline.py --config_file bundles/dacal_ct2mr/configs/train.json --dataset_dir DIR
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from torch import Tensor
from torch.nn import functional

from dacal_med.core.scores import mean_dice, pool, summarise_run
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError
from dacal_med.transforms.labels import IGNORE_INDEX

GRID = 64
GAINS = tuple(2.0 ** (k / 2) for k in range(13))


def position_prior(labels: Iterable[Tensor], num_classes: int, grid: int = GRID) -> Tensor:
    """Return the share of images with each class at each relative position.

    Args:
        labels: class indices ``(1, *spatial)``, of any size; 255 is ignored.
        num_classes: number of classes.
        grid: cells along each spatial axis.

    Returns:
        ``(1, C, *grid)`` probabilities; equal ones where every image is ignored.

    Raises:
        InputError: if there is no image.
    """
    total: Tensor | None = None
    for label in labels:
        kept = label.long() != IGNORE_INDEX
        one_hot = functional.one_hot(label.long().where(kept, 0)[0], num_classes).movedim(-1, 0) * kept
        share = functional.interpolate(one_hot[None].float(), size=(grid,) * (label.dim() - 1), mode="area")
        total = share if total is None else total + share
    if total is None:
        raise InputError("position prior: found no labelled source image, wanted at least one")
    # A tenth of an image's worth of doubt, so that no class has probability 0.
    total = total + 0.1 / num_classes
    return total / total.sum(dim=1, keepdim=True)


def guess(prior: Tensor, shape: Sequence[int], gain: float) -> Tensor:
    """Return probabilities ``(1, C, *shape)``: the prior at each position, odds of the foreground times ``gain``."""
    resized = functional.interpolate(prior, size=tuple(shape), mode="area")
    weights = torch.full((1, prior.shape[1], *[1] * len(shape)), gain)
    weights[:, 0] = 1.0
    resized = resized * weights
    return resized / resized.sum(dim=1, keepdim=True)


def measure(
    prior: Tensor, labels: Sequence[Tensor], gain: float, background: int | None
) -> list[SegmentationStatistics]:
    """Return the statistics of each image ``(1, *spatial)``."""
    cases = []
    for label in labels:
        statistics = SegmentationStatistics(prior.shape[1], background=background)
        statistics.update(guess(prior, label.shape[1:], gain), label[None])
        cases.append(statistics)
    return cases


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the baseline of a data set."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config_file", required=True, help="the bundle's train.json")
    parser.add_argument("--dataset_dir", required=True, help="folder with datalist.json")
    parser.add_argument("--spatial_dims", type=int, default=None, help="2 or 3; the configuration's by default")
    parser.add_argument("--no-background", action="store_true", help="class 0 is a class like the others")
    options = parser.parse_args(arguments)
    config = ConfigParser()
    config.read_config(options.config_file)
    root = Path(options.config_file).resolve().parent.parent
    overrides: dict[str, Any] = {"bundle_root": str(root), "dataset_dir": options.dataset_dir}
    if options.spatial_dims is not None:
        overrides["spatial_dims"] = options.spatial_dims
    config.update(overrides)
    datalist = config.get_parsed_content("datalist")
    load = Compose(
        [*map(config.get_parsed_content, ("load", "load_label")), *config.get_parsed_content("geometry_labelled")]
    )
    source, target = (
        [plain(load(dict(entry))["label"]) for entry in entries] for entries in (datalist.source, datalist.target_val)
    )
    background = None if options.no_background else 0
    prior = position_prior(source, datalist.num_classes)
    scores = {gain: mean_dice(pool(measure(prior, source, gain, background))) for gain in GAINS}
    gain = max(scores, key=lambda g: scores[g])
    result = summarise_run(measure(prior, target, gain, background), datalist.class_names)
    print(json.dumps({"gain": gain, "source_dice": scores[gain], **result}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
