# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Strong appearance of what the student sees: colour jitter and blur, as DACS and DAFormer have them.

Source: DACS (Tranheden et al., WACV 2021, arXiv 2007.08702) and the published code of DAFormer (Hoyer et al., CVPR
2022), which use kornia 0.5: brightness is added, contrast multiplied, saturation multiplied and hue turned in HSV, in a
random order, and each result is clipped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor

from dacal_med.io.errors import InputError


@dataclass(frozen=True)
class StrongAppearance:
    """Colour jitter and blur, drawn for each image of a batch; by default neither.

    Args:
        jitter_strength: of the colour jitter, see :func:`colour_jitter`; 0 for none. For colour pictures in [0, 1];
            DAFormer has 0.2.
        jitter_probability: of an image to be jittered; the published code's ``p = 0.2`` is the share left alone.
        blur_probability: of an image to be blurred; DAFormer has 0.5.
        blur_sigma: bounds of the Gaussian blur's standard deviation in voxels.

    Raises:
        InputError: for a number out of range.
    """

    jitter_strength: float = 0.0
    jitter_probability: float = 0.8
    blur_probability: float = 0.0
    blur_sigma: Sequence[float] = (0.15, 1.15)

    def __post_init__(self) -> None:
        shares = (self.jitter_strength, self.jitter_probability, self.blur_probability)
        sigma = tuple(self.blur_sigma)
        if not all(0.0 <= share <= 1.0 for share in shares) or len(sigma) != 2 or not 0.0 < sigma[0] <= sigma[1]:
            raise InputError(
                f"host: found jitter_strength={self.jitter_strength}, jitter_probability={self.jitter_probability}, "
                f"blur_probability={self.blur_probability}, blur_sigma={list(sigma)}; wanted three numbers in [0, 1] "
                f"and two above 0, the lower first"
            )

    @property
    def changes(self) -> bool:
        """Whether any image is changed."""
        return self.jitter_strength > 0.0 or self.blur_probability > 0.0

    def check(self, channels: int) -> None:
        """Raise :class:`InputError` for colour jitter of images without three channels."""
        if self.jitter_strength > 0.0 and channels != 3:
            raise InputError(
                f"host#jitter_strength: found {self.jitter_strength} for images of {channels} channel(s), wanted 0: "
                f"only red, green and blue have a hue and a saturation"
            )

    def __call__(self, images: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the images ``(B, channels, *spatial)``, each changed by the draws of its own generator."""
        return torch.stack([self._changed(image, g) for image, g in zip(images, generators, strict=True)])

    def _changed(self, image: Tensor, generator: torch.Generator) -> Tensor:
        jittered, blurred, share = torch.rand(3, generator=generator).tolist()
        if self.jitter_strength > 0.0 and jittered < self.jitter_probability:
            image = colour_jitter(image, self.jitter_strength, generator)
        if blurred < self.blur_probability:
            low, high = self.blur_sigma
            image = gaussian_blur(image, low + (high - low) * share)
        return image


def colour_jitter(image: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Return a picture with another brightness, contrast, saturation and hue.

    Args:
        image: ``(3, *spatial)``, red, green and blue in [0, 1].
        strength: the most that each changes: of the full range for brightness, of its value for contrast and
            saturation, of the full circle for hue.
        generator: of the draws, on the CPU; torch's global one by default.
    """
    draws = torch.rand(4, generator=generator)
    brightness, contrast, saturation, hue = (strength * (2.0 * draws - 1.0)).tolist()
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: (x + brightness).clamp(0.0, 1.0),
        lambda x: (x * (1.0 + contrast)).clamp(0.0, 1.0),
        lambda x: _in_hsv(x, saturation=1.0 + saturation),
        lambda x: _in_hsv(x, hue=hue),
    ]
    for index in torch.randperm(len(changes), generator=generator).tolist():
        image = changes[index](image)
    return image


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Return an image ``(channels, *spatial)`` blurred by ``sigma`` voxels along every axis; the border is mirrored."""
    kernel = gaussian_1d(torch.tensor(sigma), truncated=4.0, approx="sampled").to(image)
    # A mirror needs more voxels than half the kernel along each axis; small images are blurred by its middle.
    kernels = []
    for size in image.shape[1:]:
        excess = max(0, len(kernel) // 2 - (size - 1))
        middle = kernel[excess : len(kernel) - excess]
        kernels.append(middle / middle.sum())
    return separable_filtering(image[None], kernels, mode="reflect")[0]


def rgb_to_hsv(image: Tensor) -> Tensor:
    """Return hue, saturation and value in [0, 1] of ``(3, *spatial)`` in [0, 1]."""
    value, largest = image.max(dim=0)
    spread = value - image.min(dim=0).values
    red, green, blue = image.unbind(0)
    divisor = torch.where(spread > 0, spread, torch.ones_like(spread))
    sectors = torch.stack([(green - blue) / divisor, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor])
    hue = sectors.gather(0, largest[None])[0] / 6.0
    saturation = torch.where(value > 0, spread / value.clamp_min(torch.finfo(value.dtype).tiny), 0.0)
    return torch.stack([torch.where(spread > 0, hue % 1.0, 0.0), saturation, value])


def hsv_to_rgb(image: Tensor) -> Tensor:
    """Return red, green and blue of hue, saturation and value ``(3, *spatial)`` in [0, 1]."""
    hue, saturation, value = image.unbind(0)
    # The closed form of the six sectors, e.g. red is turned by 5 sixths.
    turned = [(hue * 6.0 + shift) % 6.0 for shift in (5.0, 3.0, 1.0)]
    return torch.stack([value - value * saturation * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0) for k in turned])


def _in_hsv(image: Tensor, saturation: float = 1.0, hue: float = 0.0) -> Tensor:
    h, s, v = rgb_to_hsv(image.clamp(0.0, 1.0)).unbind(0)
    return hsv_to_rgb(torch.stack([(h + hue) % 1.0, (s * saturation).clamp(0.0, 1.0), v]))
