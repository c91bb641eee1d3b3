# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""How a street looks to a camera or a renderer: light, sky, haze, rain, snow, lamps at night, blur and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter, uniform_filter1d

from dacal_med.data.phantom_shapes import smooth_noise
from dacal_med.preparation.streets.canvas import FAR, IDS, Array, Canvas, Colour

_GROUND = [IDS["road"], IDS["sidewalk"]]
_SNOWED = [IDS["sidewalk"], IDS["terrain"]]


@dataclass(frozen=True)
class Look:
    """How the streets of a data set look.

    Attributes:
        light: colour and strength of the light that falls on everything, RGB.
        sky: colour of the sky above and at the horizon.
        clouds: how strong clouds are.
        haze: share of light that is lost in haze within 100 metres.
        saturation: of colours; 1 leaves them.
        contrast: exponent; above 1 darkens what is dark.
        tint: factor of each colour channel in the end.
        blur: pixels.
        noise: standard deviation, of full scale.
        lamps: strength of lamps, lit windows and headlights.
        wet: share of light that the ground mirrors.
        snow: share of pavements and verges under snow.
        falling: "rain", "snow" or nothing in the air.
        varied: how much brightness differs between images.
    """

    light: Colour = (1.0, 1.0, 1.0)
    sky: tuple[Colour, Colour] = ((0.45, 0.62, 0.86), (0.80, 0.86, 0.92))
    clouds: float = 0.1
    haze: float = 0.15
    saturation: float = 1.0
    contrast: float = 1.0
    tint: Colour = (1.0, 1.0, 1.0)
    blur: float = 0.4
    noise: float = 0.01
    lamps: float = 0.0
    wet: float = 0.0
    snow: float = 0.0
    falling: str = ""
    varied: float = 0.08


GTA5 = Look(
    light=(1.30, 1.18, 0.98), sky=((0.30, 0.52, 0.90), (0.90, 0.84, 0.74)), clouds=0.16, haze=0.10, saturation=1.35,
    contrast=1.2, blur=0.15, noise=0.004, varied=0.18,
)  # fmt: skip
SYNTHIA = Look(
    light=(1.05, 1.05, 1.10), sky=((0.55, 0.66, 0.80), (0.70, 0.76, 0.82)), clouds=0.25, haze=0.05, saturation=1.6,
    contrast=0.9, tint=(1.0, 0.96, 1.02), blur=0.0, noise=0.0, varied=0.2,
)  # fmt: skip
CITYSCAPES = Look(
    light=(1.05, 1.10, 1.06), sky=((0.80, 0.84, 0.85), (0.90, 0.93, 0.92)), clouds=0.08, haze=0.30, saturation=0.62,
    contrast=1.05, tint=(0.90, 1.0, 0.94), blur=0.7, noise=0.016,
)  # fmt: skip
FOG = Look(
    light=(0.72, 0.73, 0.75), sky=((0.66, 0.68, 0.70), (0.68, 0.70, 0.72)), clouds=0.0, haze=0.93, saturation=0.5,
    blur=0.8, noise=0.012,
)  # fmt: skip
RAIN = Look(
    light=(0.56, 0.58, 0.64), sky=((0.44, 0.47, 0.52), (0.58, 0.61, 0.65)), clouds=0.22, haze=0.45, saturation=0.6,
    blur=0.8, noise=0.018, lamps=0.25, wet=0.42, falling="rain",
)  # fmt: skip
SNOW = Look(
    light=(0.74, 0.77, 0.84), sky=((0.72, 0.75, 0.80), (0.80, 0.82, 0.85)), clouds=0.06, haze=0.55, saturation=0.55,
    blur=0.7, noise=0.014, wet=0.12, snow=0.85, falling="snow",
)  # fmt: skip
NIGHT = Look(
    light=(0.17, 0.175, 0.24), sky=((0.015, 0.018, 0.035), (0.07, 0.06, 0.06)), clouds=0.02, haze=0.12, saturation=0.8,
    tint=(1.10, 0.98, 0.82), blur=0.9, noise=0.026, lamps=1.0, wet=0.06, varied=0.15,
)  # fmt: skip
DARK_ZURICH = Look(
    light=(0.21, 0.19, 0.25), sky=((0.03, 0.035, 0.08), (0.13, 0.10, 0.11)), clouds=0.03, haze=0.10, saturation=0.75,
    tint=(1.12, 0.96, 0.84), blur=1.0, noise=0.032, lamps=0.9, wet=0.10, varied=0.2,
)  # fmt: skip


def photograph(canvas: Canvas, look: Look, step: int, rng: np.random.Generator) -> Array:
    """Turn a street into an image.

    Args:
        canvas: the street, ``step`` times finer than the image.
        look: how it looks.
        step: rows and columns of the canvas for one of the image.
        rng: the only source of randomness.

    Returns:
        ``(rows, columns, 3)``, uint8.
    """
    camera = canvas.camera
    size = (camera.rows, camera.columns)
    sky = canvas.depth >= FAR
    colour = canvas.colour.copy()
    if look.snow:
        _lay_snow(colour, canvas, look.snow, rng)
    exposure = float(np.exp(rng.normal(0.0, look.varied)))
    bright = colour * np.asarray(look.light, np.float32) * np.float32(exposure)
    if look.lamps:
        # Lamps light what is near them in the picture; their light falls off from the camera's headlights as well.
        spread = _spread(canvas, step)
        own = np.exp(-np.where(sky, FAR, canvas.depth) / 14.0)[..., None]
        bright = bright + look.lamps * (colour * (2.2 * spread + 0.30 * own) + canvas.glow + 0.25 * spread)
    share = np.clip((np.arange(camera.rows, dtype=np.float32) + 0.5) / max(camera.horizon, 1.0), 0, 1)[:, None, None]
    top, low = (np.asarray(tone, np.float32) for tone in look.sky)
    heaven = (top * (1 - share) + low * share) * np.float32(min(exposure, 1.15))
    heaven = heaven * (1.0 + look.clouds * smooth_noise(size, (7, 11), rng))[..., None]
    lost = 1.0 - (1.0 - look.haze) ** (np.minimum(canvas.depth, 400.0) / 100.0)
    image = bright + (low - bright) * lost[..., None]
    image[sky] = heaven[sky]
    if look.lamps:
        image[sky] += 0.5 * look.lamps * spread[sky]
    if look.wet:
        _mirror(image, canvas, look.wet)
    image = _fall(_shrink(image, step), look, rng)
    grey = image.mean(axis=-1, keepdims=True)
    image = np.clip(grey + look.saturation * (image - grey), 0.0, None) * np.asarray(look.tint, np.float32)
    if look.blur:
        image = gaussian_filter(image, (look.blur, look.blur, 0))
    image = 1.0 - np.exp(-1.6 * image**look.contrast)  # as films and sensors saturate
    image = image + rng.normal(0.0, look.noise, image.shape) if look.noise else image
    return np.asarray(np.clip(255.0 * image + 0.5, 0, 255), dtype=np.uint8)


def _spread(canvas: Canvas, step: int) -> Array:
    """The glow around lamps, near and wide, as a lens spreads it."""
    coarse = _shrink(canvas.glow, step)
    near, wide = (gaussian_filter(coarse, (len(coarse) * share, len(coarse) * share, 0)) for share in (0.03, 0.12))
    return np.repeat(np.repeat(near + wide, step, axis=0), step, axis=1)


def _shrink(image: Array, step: int) -> Array:
    rows, columns = image.shape[:2]
    return image.reshape(rows // step, step, columns // step, step, 3).mean(axis=(1, 3))


def _lay_snow(colour: Array, canvas: Canvas, share: float, rng: np.random.Generator) -> None:
    patches = smooth_noise(canvas.labels.shape, (18, 50), rng)
    white = np.isin(canvas.labels, _SNOWED) & (patches < 2.5 * (share - 0.5))
    slush = (canvas.labels == IDS["road"]) & (patches > 0.9)
    leaves = (canvas.labels == IDS["vegetation"]) & (patches < share - 0.4)
    for mask, amount in ((white, 0.9), (slush, 0.45), (leaves, 0.45)):
        colour[mask] += amount * (np.asarray([0.88, 0.90, 0.95], np.float32) - colour[mask])


def _mirror(image: Array, canvas: Canvas, share: float) -> None:
    """Let the wet ground mirror what is above the horizon, blurred downwards."""
    camera = canvas.camera
    below = np.arange(camera.rows)
    rows = np.clip(np.round(2 * camera.horizon - below).astype(int), 0, camera.rows - 1)
    seen = uniform_filter1d(image[rows], max(3, camera.rows // 12), axis=0)
    mask = np.isin(canvas.labels, _GROUND)
    image[mask] += share * (seen[mask] - 0.6 * image[mask])


def _fall(image: Array, look: Look, rng: np.random.Generator) -> Array:
    """Draw drops or flakes in the air."""
    if not look.falling:
        return image
    rows, columns = image.shape[:2]
    drops = (rng.random((rows, columns)) < (0.004 if look.falling == "rain" else 0.006)).astype(np.float32)
    if look.falling == "rain":
        drops = uniform_filter1d(drops, max(3, rows // 12), axis=0) * max(3, rows // 12) * 0.22
    else:
        drops = np.clip(gaussian_filter(drops, 0.6) * 2.4, 0, 0.9)
    return image + drops[..., None] * (0.95 - image)
