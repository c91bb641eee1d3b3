# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""TensorBoard: losses, temperatures, scores, reliability plots and image panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from dacal_med.core.scores import SCORES, dice, reliability_table
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.reporting.reliability import reliability_diagram, reliability_histogram
from dacal_med.reporting.tables import repeats


class TensorBoardCalibration:
    """Writes to one TensorBoard folder; the file appears with the first thing written.

    Args:
        log_dir: the folder.
    """

    def __init__(self, log_dir: str) -> None:
        self.log_dir = log_dir
        self._writer: SummaryWriter | None = None

    @property
    def writer(self) -> SummaryWriter:
        """The summary writer, opened when first used."""
        if self._writer is None:
            self._writer = SummaryWriter(self.log_dir)
        return self._writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def calibration(
        self,
        step: int,
        tag: str,
        pooled: SegmentationStatistics,
        cases: Sequence[SegmentationStatistics],
        class_names: Sequence[str],
    ) -> None:
        """Write scores, reliability diagrams with counts, and the dataset reliability histogram.

        Where no class is background the foreground is everything, and is not written a second time.

        Args:
            step: iteration.
            tag: prefix, e.g. ``target_val``.
            pooled: sums over all cases.
            cases: sums of each case.
            class_names: names by class.
        """
        split = pooled.background is not None
        scores = {f"{tag}/{name}": score(pooled) for name, score in SCORES.items() if not repeats(name, split)}
        for name, value in zip(class_names, dice(pooled).tolist(), strict=True):
            scores[f"{tag}_dice/{name}"] = value
        # A score that does not exist is left out rather than drawn as a number.
        self.scalars(step, {name: value for name, value in scores.items() if value == value})
        for region in ("all", *(["foreground"] if split else []), "boundary"):
            table = reliability_table(pooled, region=region)
            if float(table.count.sum()) > 0:
                self.panel(step, f"{tag}_reliability/{region}", reliability_diagram(table, f"{tag}: {region} voxels"))
        for k, name in enumerate(class_names):
            table = reliability_table(pooled, class_index=k)
            figure = reliability_diagram(table, f"{tag}: {name} against the rest")
            self.panel(step, f"{tag}_reliability_by_class/{name}", figure)
        tables = [reliability_table(case, region="foreground") for case in cases]
        tables = [table for table in tables if float(table.count.sum()) > 0]
        if tables:
            figure = reliability_histogram(tables, f"{tag}: {'foreground' if split else 'all voxels'}")
            self.panel(step, f"{tag}_reliability/dataset_histogram", figure)

    def parts(self, step: int, tag: str, scores: Mapping[str, Any], has_background: bool = True) -> None:
        """Write the scores of each group of cases, the means over each subset of classes and the Dice of each region.

        Args:
            step: iteration.
            tag: prefix; tags are ``<tag>_by_group/<group>/<score>``, ``<tag>_subset/<subset>/<mean>`` and
                ``<tag>_region/<region>/dice``.
            scores: of :func:`dacal_med.core.scores.summarise_run`.
            has_background: whether a class is background.
        """
        values = {
            f"{tag}_by_group/{group}/{name}": summary[name]
            for group, summary in scores.get("per_group", {}).items()
            for name in SCORES
            if not repeats(name, has_background)
        }
        for subset, means in scores.get("class_subsets", {}).items():
            values.update({f"{tag}_subset/{subset}/{name}": value for name, value in means.items()})
        for region, found in scores.get("regions", {}).items():
            values[f"{tag}_region/{region}/dice"] = found["dice"]
        self.scalars(step, {name: value for name, value in values.items() if value is not None})

    def text(self, tag: str, content: str, step: int = 0) -> None:
        """Write a line of text."""
        self.writer.add_text(tag, content, step)

    def panel(self, step: int, tag: str, figure: Figure) -> None:
        """Write a figure as an image."""
        self.writer.add_figure(tag, figure, step, close=False)

    def close(self) -> None:
        """Flush and close; writing again opens a new file in the same folder."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
