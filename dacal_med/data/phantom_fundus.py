# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Random fundus photographs of two cameras: vessel trees, optic disc and cup on an orange background.

Vessels leave the disc in four arcades that bend around the macula and branch. The first camera is warm, bright and
evenly lit; the second is brown, dim and soft, lit off-centre, with a strong fall-off to the edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

from dacal_med.data.phantom_shapes import Drawn, smooth_noise

DISC_CUP = {0: "background", 1: "optic disc outside the cup", 2: "optic cup"}
VESSELS = {0: "background", 1: "vessel"}
_FINER = 4  # vessels are drawn that many times finer, so that their edges are smooth


@dataclass(frozen=True)
class Camera:
    """How a camera shows an eye: colours as RGB shares of full scale."""

    background: tuple[float, float, float]
    disc: tuple[float, float, float]
    cup: tuple[float, float, float]
    vessel: tuple[float, float, float]
    fall_off: float
    off_centre: float
    blur: float
    noise: float


CAMERAS = (
    Camera((0.80, 0.42, 0.18), (1.0, 0.80, 0.48), (1.0, 0.95, 0.76), (0.74, 0.42, 0.50), 0.22, 0.05, 0.5, 0.012),
    Camera((0.50, 0.31, 0.20), (0.74, 0.58, 0.36), (0.80, 0.70, 0.46), (0.66, 0.56, 0.66), 0.55, 0.22, 1.0, 0.02),
)


def draw(task: str, domain: int, size: tuple[int, ...], spacing: tuple[float, ...], rng: np.random.Generator) -> Drawn:
    """Draw an eye and photograph it with one of the two cameras.

    Args:
        task: "disc_cup" or "vessels": what the labels show.
        domain: 0 or 1, the camera.
        size: rows and columns in pixels.
        spacing: not used: pictures have no scale.
        rng: the only source of randomness.

    Returns:
        RGB picture ``(*size, 3)`` and labels ``size``, uint8.
    """
    camera = CAMERAS[domain]
    unit = float(min(size))
    down, right = np.indices(size, dtype=np.float32)
    middle = (np.asarray(size) - 1) / 2 + rng.normal(0.0, 0.01, 2) * unit
    field = np.hypot(down - middle[0], right - middle[1]) / (0.47 * unit)
    side = float(rng.choice([-1.0, 1.0]))  # left or right eye
    disc = middle + np.asarray([rng.normal(0.0, 0.025), side * rng.uniform(0.16, 0.22)]) * unit
    radius = rng.uniform(0.075, 0.1) * unit
    to_disc = np.hypot((down - disc[0]) / 1.08, right - disc[1]) / radius
    bumps = 0.05 * smooth_noise(size, (9, 9), rng)
    share = rng.uniform(0.35, 0.7)
    shift = np.hypot((down - disc[0]) / 1.08, right - disc[1] - side * 0.06 * radius) / radius
    edge = 1.5 / radius
    in_disc, in_cup = _step(1.0 - to_disc - bumps, edge), _step(share - shift - bumps, 1.6 * edge)
    vessels = _vessels(size, disc, side, rng)

    macula = middle - np.asarray([0.0, side * 0.06 * unit])
    dark = np.exp(-(((down - macula[0]) ** 2 + (right - macula[1]) ** 2) / (2 * (0.07 * unit) ** 2)))
    choroid = 1.0 + 0.05 * smooth_noise(size, (13, 13), rng) + 0.03 * smooth_noise(size, (40, 40), rng)
    layers = [np.asarray(colour) * np.exp(rng.normal(0.0, 0.05, 3)) for colour in (camera.background, camera.disc)]
    cup = np.maximum(np.asarray(camera.cup), layers[1])
    image = layers[0] * (choroid * (1.0 - 0.35 * dark))[..., None]
    for mask, colour in ((in_disc, layers[1]), (in_cup, cup)):
        image = image + mask[..., None] * (colour - image)
    image = image * (1.0 - vessels[..., None] * (1.0 - np.asarray(camera.vessel)))
    light = middle + rng.normal(0.0, 1.0, 2) * camera.off_centre * 0.5 * unit
    distance = np.hypot(down - light[0], right - light[1]) / (0.47 * unit)
    image = image * (rng.uniform(0.92, 1.08) * (1.0 - camera.fall_off * np.clip(distance, 0, 1.5) ** 2))[..., None]
    seen = _step(1.0 - field, 0.012)
    image = gaussian_filter(np.clip(image, 0.0, 1.0) * seen[..., None], (camera.blur, camera.blur, 0))
    image = image + rng.normal(0.0, camera.noise, image.shape) * (seen[..., None] > 0.1)
    picture = np.asarray(np.clip(np.rint(image * 255), 0, 255), dtype=np.uint8)
    labels = np.zeros(size, dtype=np.uint8)
    if task == "vessels":
        labels[(vessels > 0.45) & (field < 0.98)] = 1
    else:
        labels[in_disc > 0.5] = 1
        labels[(in_disc > 0.5) & (in_cup > 0.5)] = 2
    return Drawn(picture, labels, None)


def _step(height: np.ndarray, width: float) -> np.ndarray:
    """From 0 below zero to 1 above it, over about ``width`` on either side."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(height / (0.4 * width), -30, 30))))


def _vessels(size: tuple[int, ...], disc: np.ndarray, side: float, rng: np.random.Generator) -> np.ndarray:
    """How much of each pixel is vessel, 0 to 1: four arcades, an artery and a vein each, with their branches."""
    canvas = Image.new("L", (size[1] * _FINER, size[0] * _FINER))
    pen = ImageDraw.Draw(canvas)
    unit = min(size)
    for up in (-1.0, 1.0):
        for across, bend in ((-side, 1.0), (side, 0.25)):
            for width in (rng.uniform(0.018, 0.023), rng.uniform(0.013, 0.016)):
                start = disc + rng.normal(0.0, 0.012, 2) * unit
                # Angles from the columns' axis; arcades start steeply and bend towards the macula's far side.
                angle = np.arctan2(up * rng.uniform(0.9, 1.6), across * rng.uniform(0.35, 0.9))
                turn = -bend * up * across * rng.uniform(0.6, 1.1)
                _branch(pen, start, angle, turn, width * unit, 0.75 * unit, 2, rng)
    fine = np.asarray(canvas, dtype=np.float32) / 255
    return fine.reshape(size[0], _FINER, size[1], _FINER).mean(axis=(1, 3))


def _branch(
    pen: ImageDraw.ImageDraw,
    start: np.ndarray,
    angle: float,
    turn: float,
    width: float,
    length: float,
    generations: int,
    rng: np.random.Generator,
) -> None:
    """A winding line that gets thinner and gives off side branches; angles in radians, lengths in pixels."""
    step = 3.0
    place, walked = np.asarray(start, dtype=float), 0.0
    wander = 0.0
    while walked < length and width > 0.6:
        wander = 0.8 * wander + rng.normal(0.0, 0.06)
        angle += turn * step / length * 1.4 + wander
        following = place + step * np.asarray([np.sin(angle), np.cos(angle)])
        ends = [tuple(float(v) * _FINER for v in point[::-1]) for point in (place, following)]
        pen.line([*ends[0], *ends[1]], fill=255, width=max(1, round(width * _FINER)))
        place, walked, width = following, walked + step, width * 0.992
        if generations and walked > 0.1 * length and rng.uniform() < 0.07:
            off = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0)
            share = rng.uniform(0.55, 0.75)
            _branch(pen, place, angle + off, -0.5 * off, width * share, (length - walked) * 0.6, generations - 1, rng)
            width *= 0.93
