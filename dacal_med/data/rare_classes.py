# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Rare class sampling: source images of rare classes are drawn more often (DAFormer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError


class LabelledDataset(Protocol):
    """A data set of dictionaries with ``label``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RareClassSampling:
    r"""Draws a class, the rarer the likelier, then a source image with it, then crops until the crop has some of it.

    Rare class sampling of DAFormer (Hoyer, Dai, Van Gool, CVPR 2022, arXiv 2111.14887): with ``f_c`` the share of class
    ``c`` among all labelled voxels of the source,

    .. math:: P(c) = \exp((1 - f_c) / T) / \sum_k \exp((1 - f_k) / T).

    Every label is read once when this is made, unless ``counts`` are given.

    Args:
        data: the source data set, before its random transforms; items with ``label`` ``(1, *spatial)``.
        num_classes: number of classes; other label values are ignored.
        temperature: ``T``, positive; the smaller, the more of the rarest classes.
        min_voxels: an image has a class if it holds more voxels of it than this. The paper's 3000 are pixels of street
            scenes; small structures need fewer.
        min_crop_ratio: a crop has enough of the class if it holds more than this times ``min_voxels`` (DAFormer 0.5).
        tries: how many further crops are drawn at most until one has enough; the last is taken as it is.
        classes: which classes are drawn, as indices or names; all that occur by default.
        class_names: names by class index.
        counts: voxels of each class in each image, ``(len(data), num_classes)``, such as
            :func:`dacal_med.data.read_class_counts` gives.

    Attributes:
        classes: indices of the classes that are drawn.
        probabilities: of each of them, summing to 1.

    Raises:
        InputError: if a class is unknown or no image has enough of it, or a number is out of range.
    """

    def __init__(
        self,
        data: LabelledDataset,
        num_classes: int,
        temperature: float = 0.01,
        min_voxels: int = 3000,
        min_crop_ratio: float = 0.5,
        tries: int = 10,
        classes: Sequence[int | str] | None = None,
        class_names: Sequence[str] | None = None,
        counts: Sequence[Sequence[int]] | np.ndarray | None = None,
    ) -> None:
        numbers = (temperature, min_voxels, min_crop_ratio, tries)
        if any(isinstance(n, bool) or not isinstance(n, int | float) for n in numbers):
            raise InputError(
                f"source_sampling: found temperature={temperature!r}, min_voxels={min_voxels!r}, "
                f"min_crop_ratio={min_crop_ratio!r}, tries={tries!r}; wanted numbers"
            )
        if classes is not None and (isinstance(classes, str) or not isinstance(classes, Sequence)):
            raise InputError(f"source_sampling#classes: found {classes!r}, wanted a list of names or indices")
        if not temperature > 0.0 or min_voxels < 0 or not min_crop_ratio >= 0.0 or tries < 0:
            raise InputError(
                f"source_sampling: found temperature={temperature}, min_voxels={min_voxels}, "
                f"min_crop_ratio={min_crop_ratio}, tries={tries}; wanted a positive temperature and nothing negative"
            )
        table = class_counts(data, num_classes) if counts is None else np.asarray(counts)
        if table.shape != (len(data), num_classes) or not table.sum():
            raise InputError(
                f"source_sampling: found counts of shape {table.shape} and sum {table.sum()}, "
                f"wanted ({len(data)}, {num_classes}) and labelled voxels"
            )
        names = [str(index) for index in range(num_classes)] if class_names is None else list(class_names)
        present = np.flatnonzero(table.sum(axis=0)).tolist()
        self.classes: list[int] = present if classes is None else [_index(c, names, num_classes) for c in classes]
        self.cases = [np.flatnonzero(table[:, c] > min_voxels) for c in self.classes]
        for c, cases in zip(self.classes, self.cases, strict=True):
            if not len(cases):
                raise InputError(
                    f"source_sampling: no source image has more than min_voxels={min_voxels} voxels of class "
                    f"{names[c]!r}, the most is {table[:, c].max()}; lower min_voxels, or leave it out of `classes`"
                )
        if not self.classes:
            raise InputError("source_sampling#classes: found none, wanted at least one")
        frequency = table.sum(axis=0)[self.classes] / table.sum()
        # The common factor exp(1 / T) would overflow.
        weight = np.exp((frequency.min() - frequency) / temperature)
        self.probabilities: np.ndarray = weight / weight.sum()
        self.size = len(data)
        self.min_crop_voxels = min_voxels * min_crop_ratio
        self.tries = tries

    def choose(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw a class and an image with it.

        Args:
            rng: from which both are drawn.

        Returns:
            The index of the image and the class.
        """
        position = int(rng.choice(len(self.classes), p=self.probabilities))
        return int(rng.choice(self.cases[position])), self.classes[position]

    def accepts(self, label: Any, wanted: int) -> bool:
        """Return whether a crop's label ``(1, *spatial)`` holds enough of the class that was drawn."""
        return int((plain(label) == wanted).sum()) > self.min_crop_voxels


def class_counts(data: LabelledDataset, num_classes: int) -> np.ndarray:
    """Count the voxels of each class in each image.

    Args:
        data: items with ``label`` ``(1, *spatial)``, integers; values outside ``[0, num_classes)`` are left out.
        num_classes: number of classes.

    Returns:
        int64 ``(len(data), num_classes)``.
    """
    table = np.zeros((len(data), num_classes), dtype=np.int64)
    for row, index in zip(table, range(len(data)), strict=True):
        label = plain(data[index]["label"]).long()
        row += label[(label >= 0) & (label < num_classes)].bincount(minlength=num_classes).numpy()
    return table


def _index(wanted: int | str, names: Sequence[str], num_classes: int) -> int:
    if isinstance(wanted, str) and wanted in names:
        return list(names).index(wanted)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted < num_classes:
        raise InputError(
            f"source_sampling#classes: found {wanted!r}, wanted one of {list(names)} or 0 to {num_classes - 1}"
        )
    return int(wanted)
