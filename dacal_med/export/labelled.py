# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A site's labelled cases as an exported network sees them: windows to fit on, whole images to measure on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.transforms import Compose, LoadImaged, ResampleToMatchd
from torch import Tensor, nn

from dacal_med.comparison.calibrators import Prediction
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.tensors import plain
from dacal_med.data.datalist import Datalist
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.site.calibrated import CalibratedNetwork
from dacal_med.transforms.labels import IGNORE_INDEX, LabelsToChannelsd

VOXELS_PER_WINDOW = 8192


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
        image: Compose = parser.get_parsed_content("preprocessing")
        self._read = Compose(
            [
                image,
                LoadImaged("label", ensure_channel_first=True),
                LabelsToChannelsd("label", datalist.label_values, datalist.ignore_values),
                # Whatever moved the image's grid moves the label's.
                ResampleToMatchd("label", key_dst="image", mode="nearest"),
            ]
        )

    def __len__(self) -> int:
        return len(self.datalist.source)

    def recorded(self, index: int) -> tuple[SegmentationStatistics, Prediction]:
        """Predict a case as exported, and keep voxels of every window for a fit.

        Windows overlap, so that the middle of an image is seen more often, as in inference, which weighs windows by
        position; the fit does not.

        Returns:
            The case's sums, and drawn voxels of the base network as ``(1, C, N)`` probabilities and ``(1, 1, N)`` labels.
        """
        image, label = self._item(index)
        generator = torch.Generator().manual_seed(self.seed + index)
        drawn: list[tuple[Tensor, Tensor]] = []

        def windows(part: Tensor) -> Tensor:
            seen, truth = part[:, : self.in_channels], part[:, self.in_channels :]
            logits = self.base(seen)
            flat, classes = logits.movedim(1, -1).flatten(0, -2), truth.flatten().round().long() - 1
            # What inference pads a small image with is 0 here and no class.
            known = ((classes >= 0) & (classes != IGNORE_INDEX)).nonzero()[:, 0]
            kept = known[torch.randperm(len(known), generator=generator)[: VOXELS_PER_WINDOW * len(part)]]
            drawn.append((flat[kept].softmax(dim=1), classes[kept]))
            return self.network(seen)

        statistics = self._measured(torch.cat([image, label.float() + 1.0], dim=1), label, windows)
        probabilities, classes = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        sample = Prediction(probabilities.T[None], torch.zeros(1, 1, len(classes)), classes[None, None])
        return statistics, sample

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
        background = 0 if names[0].lower() == "background" else None
        statistics = SegmentationStatistics(len(names), ignore_index=IGNORE_INDEX, background=background)
        statistics.update(predict_probabilities(self._inferer, network, image), label)  # type: ignore[arg-type]
        return statistics
