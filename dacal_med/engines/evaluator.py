# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation in one pass: sliding windows, averaged probabilities, statistics from which every score derives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from ignite.engine import Events
from monai.engines.evaluator import Evaluator
from monai.engines.utils import IterationEvents
from monai.inferers import Inferer, SimpleInferer
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from dacal_med.core.regions import region_classes
from dacal_med.core.scores import pool, summarise_run
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.core.subsets import subset_classes
from dacal_med.core.tensors import plain
from dacal_med.engines.parallel import own_rank, world_size
from dacal_med.io.errors import InputError
from dacal_med.io.reading import is_picture

WindowMap = Callable[[Tensor, Tensor], Tensor]


def predict_probabilities(inferer: Inferer, network: nn.Module, image: Tensor) -> Tensor:
    """Predict class probabilities, averaging probabilities (not logits) where windows overlap.

    The choice changes ECE: averaged logits are more confident. Probabilities are what a mixture of windows means.

    Args:
        inferer: a MONAI inferer, e.g. a sliding window.
        network: maps ``(B, channels, *window)`` to logits.
        image: ``(B, channels, *spatial)``.

    Returns:
        Probabilities ``(B, C, *spatial)``, float32, summing to 1 over ``C``.
    """
    return predict_with_map(inferer, network, image, None)[0]


def predict_with_map(
    inferer: Inferer, network: nn.Module, image: Tensor, window_map: WindowMap | None
) -> tuple[Tensor, Tensor | None]:
    """Predict class probabilities as :func:`predict_probabilities` does, and in the same pass a map of something else.

    Args:
        inferer: as there, as the following.
        network: maps ``(B, channels, *window)`` to logits.
        image: ``(B, channels, *spatial)``.
        window_map: gives the map ``(B, 1, *window)`` from a window's logits, float32, and the window; averaged where
            windows overlap.

    Returns:
        Probabilities ``(B, C, *spatial)``, float32, summing to 1 over ``C``, and the map ``(B, 1, *spatial)`` if asked.
    """

    def maps(window: Tensor) -> Tensor:
        logits = network(window).float()
        if window_map is None:
            return logits.softmax(dim=1)
        with torch.autocast(window.device.type, enabled=False):
            return torch.cat([logits.softmax(dim=1), window_map(logits, window)], dim=1)

    result = inferer(image, maps)
    assert isinstance(result, Tensor)
    probabilities = result if window_map is None else result[:, :-1]
    # Weighted averages of windows sum to 1 up to rounding only.
    return probabilities / probabilities.sum(dim=1, keepdim=True), None if window_map is None else result[:, -1:]


class CalibrationEvaluator(Evaluator):
    """Measures segmentation and calibration of a network on labelled cases.

    After :meth:`run`, :attr:`pooled` holds the sums over all cases, :attr:`cases` the sums of each case in the order of
    the data, :attr:`groups` the group of each, and :attr:`scores` every score. In a distributed run each rank takes
    every ``world_size``-th case and the integer and float64 sums are gathered, so that the scores are those of a single
    process.

    ``engine.state.output`` of one case: ``image``, ``label``, ``probabilities`` (each ``(1, ., *spatial)``), ``index``
    (-1 on a rank without a case of its own, whose result does not count), and ``map`` ``(1, 1, *spatial)`` where
    :attr:`window_map` says what it is of, else ``None``.

    Args:
        device: where to predict.
        val_data: cases, each a mapping with ``image`` ``(channels, *spatial)``, ``label`` ``(1, *spatial)`` and perhaps
            ``group``, a name by which scores are also reported.
        network: maps images to logits; replaced freely between runs (e.g. by the current teacher).
        class_names: names by channel.
        inferer: how the network sees a whole image.
        ignore_index: label value that is not evaluated.
        background: class left out of mean Dice and IoU and of foreground scores; ``None`` where every class counts.
        boundary_width: half-width in voxels of the band of ``boundary_ece``.
        class_subsets: class names by the name of a subset; Dice and IoU are also averaged over each.
        regions: classes, by name or index, by the name of a region; regions may overlap, and Dice is also reported of
            the union of each.
        val_handlers: Ignite handlers.
        amp: mixed precision on CUDA.

    Raises:
        InputError: if a subset or region is empty or has a class that is none; while running, if what the network
            gives does not fit the classes or the label.
    """

    def __init__(
        self,
        device: torch.device | str,
        val_data: Sequence[Mapping[str, Any]],
        network: nn.Module,
        class_names: Sequence[str],
        inferer: Inferer | None = None,
        ignore_index: int | None = 255,
        background: int | None = 0,
        boundary_width: int = 2,
        class_subsets: Mapping[str, Sequence[str]] | None = None,
        regions: Mapping[str, Sequence[str | int]] | None = None,
        val_handlers: Sequence[Any] | None = None,
        amp: bool = False,
    ) -> None:
        self.val_data = val_data
        self.network = network
        self.class_names = tuple(class_names)
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.ignore_index = ignore_index
        self.background = background
        self.boundary_width = boundary_width
        self.class_subsets = {name: list(members) for name, members in (class_subsets or {}).items()}
        try:
            subset_classes(class_subsets or {}, self.class_names)
        except ValueError as error:
            raise InputError(f"class_subsets: {error}") from error
        try:
            self.regions = region_classes(regions or {}, self.class_names)
        except ValueError as error:
            raise InputError(f"regions: {error}") from error
        self.window_map: WindowMap | None = None
        self.cases: list[SegmentationStatistics] = []
        self.groups: list[str | None] = []
        self.pooled = self.new_statistics()
        self.scores: dict[str, Any] = {}
        # A rank without a case of its own predicts the first one, which `_gather` leaves out: engines run on something.
        indices = list(range(own_rank(), len(val_data), world_size())) or [-1]
        super().__init__(
            device=device,
            val_data_loader=_Cases(val_data, indices),
            epoch_length=len(indices),
            amp=amp and torch.device(device).type == "cuda",
            decollate=False,
        )
        self.add_event_handler(Events.STARTED, self._reset)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._gather)
        if val_handlers is not None:
            self._register_handlers(val_handlers)

    def new_statistics(self) -> SegmentationStatistics:
        """Return empty statistics with this evaluator's settings."""
        return SegmentationStatistics(
            len(self.class_names),
            ignore_index=self.ignore_index,
            background=self.background,
            boundary_width=self.boundary_width,
        )

    def summarise(self, cases: Sequence[SegmentationStatistics], groups: Sequence[str | None]) -> dict[str, Any]:
        """Return every score of ``cases`` with their groups, over this evaluator's classes, subsets and regions."""
        return summarise_run(cases, self.class_names, groups, self.class_subsets, self.regions)

    def _reset(self) -> None:
        self.cases, self.groups = [], []
        self.pooled = self.new_statistics()
        self.scores = {}

    def _iteration(self, engine: Any, batchdata: Mapping[str, Any]) -> dict[str, Any]:
        image = plain(batchdata["image"]).unsqueeze(0).to(self.state.device).float()
        label = plain(batchdata["label"]).unsqueeze(0).to(self.state.device).long()
        with eval_mode(self.network), torch.autocast(self.state.device.type, enabled=self.amp):
            probabilities, of_windows = predict_with_map(self.inferer, self.network, image, self.window_map)
        self._check(probabilities, label)
        statistics = self.new_statistics()
        statistics.update(probabilities, label)
        self.cases.append(statistics)
        self.groups.append(batchdata.get("group"))
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        file = getattr(batchdata["image"], "meta", {}).get("filename_or_obj", "")
        result = {"image": image, "label": label, "probabilities": probabilities, "index": batchdata["index"]}
        return {**result, "map": of_windows, "picture": is_picture(file)}

    def _check(self, probabilities: Tensor, label: Tensor) -> None:
        """Refuse what a wrong configuration gives, before sums are made of it."""
        classes, channels = len(self.class_names), probabilities.shape[1]
        if channels != classes:
            raise InputError(
                f"the network gives {channels} classes, but the data has {classes} ({', '.join(self.class_names)}); "
                f"wanted one channel for each: is `num_classes` or the network that of another data set?"
            )
        if probabilities.shape[2:] != label.shape[2:]:
            raise InputError(
                f"found predictions of {tuple(probabilities.shape[2:])} for a label of {tuple(label.shape[2:])}, "
                f"wanted the same size: let the image have the size of its label, and give `ResizingInferer` as "
                f"inferer for a network that is to see it smaller"
            )

    def _gather(self) -> None:
        if world_size() > 1:
            shards: list[list[tuple[dict[str, Tensor], str | None]]] = [[] for _ in range(world_size())]
            own = [case.to(torch.device("cpu")).state_dict() for case in self.cases]
            dist.all_gather_object(shards, list(zip(own, self.groups, strict=True)))
            self.cases, self.groups = [], []
            for index in range(len(self.val_data)):
                state, group = shards[index % world_size()][index // world_size()]
                case = self.new_statistics()
                case.load_state_dict(state)
                self.cases.append(case)
                self.groups.append(group)
        self.pooled = pool(self.cases)
        self.scores = self.summarise(self.cases, self.groups)
        self.state.metrics.update({k: v for k, v in self.scores.items() if isinstance(v, float)})


class _Cases:
    """Iterates over some cases of a dataset, adding their index."""

    def __init__(self, data: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> None:
        self.data = data
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index in self.indices:
            yield {**self.data[max(index, 0)], "index": index}
