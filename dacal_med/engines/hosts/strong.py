# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Strong appearance of what the student sees: colour jitter and blur, as DACS and DAFormer have them.

Source: DACS (Tranheden et al., WACV 2021, arXiv 2007.08702) and the published code of DAFormer (Hoyer et al., CVPR
2022), which use kornia 0.5: brightness is added, contrast multiplied, saturation multiplied and hue turned in HSV, in a
random order, and each result is clipped to [0, 1]. Random numbers come from torch's global generator, on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.networks.layers import gaussian_1d, separable_filtering
from torch import Tensor


def colour_jitter(image: Tensor, strength: float) -> Tensor:
    """Return a picture with another brightness, contrast, saturation and hue.

    Args:
        image: ``(3, *spatial)``, red, green and blue in [0, 1].
        strength: the most that each changes: of the full range for brightness, of its value for contrast and
            saturation, of the full circle for hue.
    """
    brightness, contrast, saturation, hue = (strength * (2.0 * torch.rand(4) - 1.0)).tolist()
    changes: list[Callable[[Tensor], Tensor]] = [
        lambda x: (x + brightness).clamp(0.0, 1.0),
        lambda x: (x * (1.0 + contrast)).clamp(0.0, 1.0),
        lambda x: _in_hsv(x, saturation=1.0 + saturation),
        lambda x: _in_hsv(x, hue=hue),
    ]
    for index in torch.randperm(len(changes)).tolist():
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
