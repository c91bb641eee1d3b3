# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Real images to try an exported network on: what it will see, in three sizes."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.transforms import SpatialPad
from torch import Tensor, nn

from dacal_med.command_line import literal
from dacal_med.core.tensors import plain
from dacal_med.data.datalist import FILE_NAME, load_datalist
from dacal_med.deploy.export.deployed import Deployed, preprocessing_of
from dacal_med.io.errors import InputError

SIZES = 3
MAX_STEP = 64
"""The coarsest grid that is tried: networks want sizes that are multiples of some power of two."""


def find_images(deployed: Deployed, dataset_dir: Path | None) -> list[Path]:
    """Return images that the network is meant for.

    Args:
        deployed: of which bundle.
        dataset_dir: a folder with a ``datalist.json``, of which the images of ``target_train`` are taken, or of images;
            ``None`` for those that the bundle's inference reads, its phantom.

    Raises:
        InputError: if there is none.
    """
    if dataset_dir is not None and (dataset_dir / FILE_NAME).is_file():
        return [Path(entry["image"]) for entry in load_datalist(dataset_dir).target_train]
    parser = ConfigParser(deployed.inference)
    folder = Path(parser.get_parsed_content("dataset_dir")) if dataset_dir is None else dataset_dir
    if dataset_dir is None and not folder.is_dir():
        # The phantom that training would have drawn.
        train = ConfigParser(ConfigParser.load_config_file(str(deployed.bundle / "configs" / "train.json")))
        train.update({"bundle_root": literal(deployed.bundle)})
        train.get_parsed_content("dataset_dir")
    patterns: Sequence[str] = parser.get_parsed_content("file_patterns")
    files = sorted(folder / name for pattern in patterns for name in glob.glob(pattern, root_dir=folder))
    if not files:
        raise InputError(f"{folder}: found no image ({', '.join(patterns)}) to check the export on; give --dataset_dir")
    return files


def try_out(network: nn.Module, config: Mapping[str, Any], files: Sequence[Path]) -> list[Tensor]:
    """Return batches of real images in three sizes, one of one case, one of two, one of three.

    Args:
        network: says which sizes it can take.
        config: preprocessing and window, as of :attr:`~dacal_med.deploy.export.deployed.Deployed.config`.
        files: images.

    Returns:
        ``(batch, channels, *size)`` each: the window, a larger and a smaller size. Parts of images around the middle of
        what differs most from its surroundings; images that are too small are padded with zeros, as inference does.

    Raises:
        InputError: if an image cannot be read or the network cannot take its own window.
    """
    read = preprocessing_of(config)
    images = []
    for number in range(SIZES):
        path = files[number * len(files) // SIZES]
        try:
            images.append(plain(read({"image": str(path)})["image"]).float())
        except Exception as error:
            # Readers and transforms raise whatever their libraries raise.
            raise InputError(f"{path}: cannot be read as inference would: {error}") from error
    sizes = accepted_sizes(network, int(config["in_channels"]), [int(n) for n in config["roi_size"]])
    return [
        torch.stack([_part(images[(number + k) % SIZES], size) for k in range(number + 1)])
        for number, size in enumerate(sizes)
    ]


def accepted_sizes(network: nn.Module, in_channels: int, roi_size: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the window, a larger and a smaller size that a network takes.

    The smaller one is left at twice the step or more; where the window is no larger, it is another larger one.

    Raises:
        InputError: if the network cannot take its window, or no other size near it.
    """
    roi = tuple(roi_size)
    if not _takes(network, in_channels, roi):
        raise InputError(f"network_def: cannot take its own window of {list(roi)} voxels")
    step = 1
    while not _takes(network, in_channels, tuple(n + step for n in roi)):
        step *= 2
        if step > MAX_STEP:
            raise InputError(f"network_def: takes its window of {list(roi)} voxels and none up to {MAX_STEP} larger")
    # One axis the less, so that axes change apart from one another.
    larger = tuple(n + step * (1 + k % 2) for k, n in enumerate(roi))
    smaller = tuple(n - step if n >= 3 * step else n + 3 * step for n in roi)
    return [roi, larger, smaller]


@torch.no_grad()
def _takes(network: nn.Module, in_channels: int, size: Sequence[int]) -> bool:
    try:
        result = network(torch.zeros(1, in_channels, *size))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return isinstance(result, Tensor) and tuple(result.shape[2:]) == tuple(size)


def _part(image: Tensor, size: Sequence[int]) -> Tensor:
    padded = plain(SpatialPad(spatial_size=size)(image))
    brightness = (padded - padded.mean()).abs().sum(dim=0)
    part: list[slice] = []
    for axis, length in enumerate(size):
        others = [k for k in range(brightness.dim()) if k != axis]
        profile = brightness.sum(dim=others)
        centre = int((profile * torch.arange(len(profile))).sum() / profile.sum().clamp_min(1e-9))
        start = min(max(0, centre - length // 2), len(profile) - length)
        part.append(slice(start, start + length))
    return padded[(slice(None), *part)]
