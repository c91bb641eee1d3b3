# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From the values in label files to the channels of a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapLabelValue, MapTransform

from dacal_med.core.tensors import plain
from dacal_med.io.errors import InputError

IGNORE_INDEX = 255


class LabelsToChannelsd(MapTransform):
    """Replace the label values of a file by channel indices, and values to be ignored by 255.

    Args:
        keys: which entries of the item hold labels ``(1, *spatial)``.
        label_values: the file's value of every channel, in the order of the channels.
        ignore_values: the file's values that count for nothing.
        allow_missing_keys: whether an item may lack a key.

    Raises:
        ValueError: a value is given twice, or there are more than 255 channels.
        InputError: when called, if a file holds any other value.
    """

    def __init__(
        self,
        keys: Hashable | Sequence[Hashable],
        label_values: Sequence[int],
        ignore_values: Sequence[int] = (),
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        values = [*label_values, *ignore_values]
        if len(set(values)) != len(values):
            raise ValueError(f"label values {values} repeat; wanted every value once.")
        if not 0 < len(label_values) <= IGNORE_INDEX:
            raise ValueError(f"{len(label_values)} channels; wanted 1 to {IGNORE_INDEX}.")
        targets = [*range(len(label_values)), *[IGNORE_INDEX] * len(ignore_values)]
        self.known = np.asarray(values)
        self.mapper = MapLabelValue(values, targets, dtype=torch.uint8)  # type: ignore[arg-type]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map the labels; the result is uint8 ``(1, *spatial)``, a metatensor if it was one."""
        item = dict(data)
        for key in self.key_iterator(item):
            self._check(key, item[key])
            item[key] = self.mapper(item[key])
        return item

    def _check(self, key: Hashable, labels: Any) -> None:
        values = plain(labels).numpy()
        strange = np.unique(values[~np.isin(values, self.known)])
        if strange.size:
            name = labels.meta.get("filename_or_obj", key) if isinstance(labels, MetaTensor) else key
            raise InputError(
                f"{name}: found the label value(s) {[float(v) for v in strange[:8]]}; "
                f"wanted only {sorted(int(v) for v in self.known)}."
            )
