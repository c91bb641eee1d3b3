# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What the random appearance transforms share: they change how an image in [0, 1] looks and never where anything is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data.meta_obj import get_track_meta
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type, convert_to_tensor

from dacal_med.core.tensors import plain


class References(Protocol):
    """Training images of the look to imitate: items with an "image", or the images themselves, ``(ch, *spatial)``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class RandAppearance(RandomizableTransform):
    """An array transform of an image in [0, 1]; subclasses say how values change.

    Args:
        prob: how often the image is changed.
    """

    def __init__(self, prob: float) -> None:
        if not 0.0 <= prob <= 1.0:
            raise ValueError(f"prob is {prob}; wanted a number from 0 to 1.")
        super().__init__(prob)

    def randomize(self, data: Any = None) -> None:
        """Draw whether to act, and the parameters if so."""
        super().randomize(data)
        if self._do_transform:
            self._draw()

    @abstractmethod
    def _draw(self) -> None:
        """Draw the parameters from ``self.R``, whatever the image."""

    @abstractmethod
    def _change(self, image: torch.Tensor) -> torch.Tensor:
        """Apply the drawn parameters to a plain float32 image ``(ch, *spatial)`` in [0, 1]."""

    def __call__(self, img: Any, randomize: bool = True) -> Any:
        """Change the look of an image.

        Args:
            img: ``(ch, *spatial)``, floating point, values in [0, 1]; a tensor, metatensor or array.
            randomize: whether to draw new parameters; False repeats the last ones.

        Returns:
            Same shape, dtype and metadata; finite and in [0, 1] where it was changed.

        Raises:
            TypeError: the image is not floating point.
        """
        img = convert_to_tensor(img, track_meta=get_track_meta())
        if not img.is_floating_point():
            raise TypeError(f"image of type {img.dtype}; wanted floating point with values in [0, 1].")
        if randomize:
            self.randomize()
        if not self._do_transform:
            return img
        changed = self._change(plain(img).to(torch.float32).clamp(0.0, 1.0)).clamp(0.0, 1.0)
        return convert_to_dst_type(changed, dst=img, dtype=img.dtype)[0]


class RandAppearanced(RandomizableTransform, MapTransform):
    """The dictionary form of a :class:`RandAppearance`: every key is changed with the same parameters.

    Args:
        keys: which entries of the item to change.
        transform: the array transform, which decides how often it acts.
        allow_missing_keys: whether an item may lack a key.
    """

    def __init__(self, keys: KeysCollection, transform: RandAppearance, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, 1.0)
        self.transform = transform

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandAppearanced:
        """Seed this transform and the array transform it holds."""
        super().set_random_state(seed, state)
        self.transform.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Change every key's image; other entries stay as they are."""
        item = dict(data)
        self.transform.randomize()
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key], randomize=False)
        return item


def pick_reference(references: References, index: int) -> torch.Tensor:
    """One reference image as a plain float32 tensor ``(ch, *spatial)`` clamped to [0, 1]."""
    item = references[index]
    image = item["image"] if isinstance(item, Mapping) else item
    return plain(image).to(torch.float32).clamp(0.0, 1.0)


def require_references(references: References) -> None:
    """Refuse an empty collection of references where it is given, not at the first draw."""
    if len(references) == 0:
        raise ValueError("references is empty; wanted at least one training image.")


def as_range(name: str, value: float | Sequence[float], low: float, high: float) -> tuple[float, float]:
    """A number or a pair as an ordered pair inside ``[low, high]``."""
    pair = (float(value), float(value)) if isinstance(value, int | float) else tuple(float(v) for v in value)
    if len(pair) != 2 or not low <= pair[0] <= pair[1] <= high:
        raise ValueError(f"{name} is {value}; wanted a number or an increasing pair within {low} to {high}.")
    return pair[0], pair[1]
