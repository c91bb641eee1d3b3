# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A site's labelled cases as an exported network sees them: windows to fit on, whole images to measure on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer, SlidingWindowInferer
from monai.transforms import Compose, LoadImaged, ResampleToMatchd
from torch import Tensor, nn

from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.tensors import plain
from dacal_med.data.datalist import Datalist
from dacal_med.deploy.export.deployed import preprocessing_of
from dacal_med.deploy.export.window_fit import WindowSample
from dacal_med.deploy.runtime.model import background_class
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.io.errors import InputError
from dacal_med.networks import CalibratedNetwork
from dacal_med.transforms.labels import IGNORE_INDEX, LabelsToChannelsd

VOXELS_PER_CASE = 30_000
"""Drawn for a fit; float32 counts them exactly."""


class LabelledCases:
    """The labelled cases of a site and an exported network.

    Args:
        config: preprocessing and inferer, as of ``configs/deploy.json``.
        datalist: of :func:`dacal_med.data.datalist.load_cases`.
        network: as exported; the network inside is :attr:`base` if it is calibrated already.
        seed: which voxels are drawn.
    """

    def __init__(self, config: Mapping[str, Any], datalist: Datalist, network: nn.Module, seed: int) -> None:
        parser = ConfigParser({**config, "device": "cpu"})
        self.spatial_dims = int(config["spatial_dims"])
        self.in_channels = int(config["in_channels"])
        self.datalist = datalist
        self.network = network
        self.base: nn.Module = network.network if isinstance(network, CalibratedNetwork) else network
        self.seed = seed
        self._inferer: Inferer = parser.get_parsed_content("inferer")
        self._read = Compose(
            [
                preprocessing_of(config),
                LoadImaged("label", reader="dacal_med.io.Reader", as_label=True, ensure_channel_first=True),
                LabelsToChannelsd("label", datalist.label_values, datalist.ignore_values),
                # Whatever moved the image's grid moves the label's.
                ResampleToMatchd("label", key_dst="image", mode="nearest"),
            ]
        )

    def __len__(self) -> int:
        return len(self.datalist.source)

    def recorded(self, index: int) -> tuple[SegmentationStatistics, WindowSample]:
        """Predict a case as exported, and keep what every window says of some voxels, for a fit.

        Returns:
            The case's sums, and the drawn voxels as the base network sees them.

        Raises:
            InputError: if no voxel of the case has a label.
        """
        image, label = self._item(index)
        known = (label.flatten() != IGNORE_INDEX).nonzero()[:, 0]
        if not len(known):
            raise InputError(f"{self.datalist.source[index]['label']}: found ignored voxels only, wanted labelled ones")
        order = torch.randperm(len(known), generator=torch.Generator().manual_seed(self.seed + index))
        drawn = known[order[:VOXELS_PER_CASE]]
        # Travels through the windows beside the image: 0 where no voxel is drawn, and where small images are padded.
        tickets = torch.zeros(label.numel())
        tickets[drawn] = torch.arange(1, len(drawn) + 1, dtype=torch.float32)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []

        def windows(part: Tensor) -> Tensor:
            seen, ticket = part[:, : self.in_channels], part[:, self.in_channels].flatten().round().long()
            rows = ticket.nonzero()[:, 0]
            logits = self.base(seen).movedim(1, -1).flatten(0, -2)
            importance = self._importance(part.shape[2:]).expand(len(part), *part.shape[2:]).flatten()
            parts.append((logits[rows].float(), importance[rows], ticket[rows] - 1))
            return self.network(seen)

        statistics = self._measured(torch.cat([image, tickets.view_as(label)], dim=1), label, windows)
        logits, importance, voxel = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return statistics, WindowSample(logits, importance, voxel, label.flatten()[drawn])

    def _importance(self, size: Sequence[int]) -> Tensor:
        """Return what the inferer weighs a window with, by position."""
        if not isinstance(self._inferer, SlidingWindowInferer):
            return torch.ones(*size)
        importance = compute_importance_map(tuple(size), mode=self._inferer.mode, sigma_scale=self._inferer.sigma_scale)
        assert isinstance(importance, Tensor)
        return importance

    def measured(self, index: int, network: nn.Module) -> SegmentationStatistics:
        """Return the sums of a case that a network predicts."""
        image, label = self._item(index)
        return self._measured(image, label, network)

    def _item(self, index: int) -> tuple[Tensor, Tensor]:
        item = self._read(dict(self.datalist.source[index]))
        assert isinstance(item["image"], MetaTensor)
        return plain(item["image"])[None].float(), plain(item["label"])[None].long()

    @torch.no_grad()
    def _measured(self, image: Tensor, label: Tensor, network: Callable[[Tensor], Tensor]) -> SegmentationStatistics:
        names = self.datalist.class_names
        statistics = SegmentationStatistics(len(names), ignore_index=IGNORE_INDEX, background=background_class(names))
        statistics.update(predict_probabilities(self._inferer, network, image), label)  # type: ignore[arg-type]
        return statistics
