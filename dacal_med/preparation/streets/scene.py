# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Random streets: road, pavements, verges, rows of buildings, walls, fences and hedges, and what stands between them.

A straight street is seen along its length. Its ground and its sides are planes, so that the place that each pixel
shows follows from its ray; things are painted on top, from far to near.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dacal_med.data.phantom_shapes import smooth_noise
from dacal_med.preparation.streets import things
from dacal_med.preparation.streets.canvas import IDS, Array, Camera, Canvas, Colour

_END = 140.0  # metres to where the street ends
_FACADES: tuple[Colour, ...] = (
    *((0.52, 0.45, 0.36), (0.42, 0.28, 0.22), (0.60, 0.58, 0.54), (0.56, 0.48, 0.28), (0.36, 0.38, 0.42)),
    *((0.66, 0.60, 0.52), (0.46, 0.36, 0.34)),
)
_WALLS: tuple[Colour, ...] = ((0.42, 0.40, 0.38), (0.46, 0.30, 0.24))
_FENCES: tuple[Colour, ...] = ((0.20, 0.24, 0.22), (0.48, 0.38, 0.26), (0.55, 0.55, 0.56))
_HEDGE: Colour = (0.15, 0.27, 0.09)
_ALL = np.s_[:, :]


@dataclass(frozen=True)
class Style:
    """What is seen in a data set's streets, and from where.

    Attributes:
        camera_height: range, metres above the ground.
        view: range of the horizontal angle of view, degrees.
        horizon: range of the horizon's place, as a share of the rows from the top.
        hood: whether the bonnet of the own car is in the picture.
        without: classes that do not occur.
        crowd: how many people and vehicles there are, 1 for the usual number.
    """

    camera_height: tuple[float, float] = (1.25, 1.5)
    view: tuple[float, float] = (52.0, 58.0)
    horizon: tuple[float, float] = (0.40, 0.46)
    hood: bool = False
    without: frozenset[str] = frozenset()
    crowd: float = 1.0


def draw_street(size: tuple[int, int], style: Style, rng: np.random.Generator) -> Canvas:
    """Draw a random street.

    Args:
        size: rows and columns.
        style: what is seen, and from where.
        rng: the only source of randomness.

    Returns:
        Its colours, labels and depth.
    """
    rows, columns = size
    road = float(rng.uniform(3.6, 5.4))  # half of its width
    view = np.deg2rad(rng.uniform(*style.view))
    camera = Camera(
        rows=rows,
        columns=columns,
        focal=columns / (2 * float(np.tan(view / 2))),
        horizon=rows * float(rng.uniform(*style.horizon)),
        middle=columns * float(rng.uniform(0.42, 0.58)),
        height=float(rng.uniform(*style.camera_height)),
        side=0.5 * road + float(rng.uniform(-0.3, 0.3)),
    )
    canvas = Canvas(camera)
    pavement = float(rng.uniform(1.8, 3.2))
    verges = [0.0 if rng.random() < 0.45 else float(rng.uniform(1.0, 3.5)) for _ in range(2)]
    if "terrain" in style.without:
        verges = [0.0, 0.0]
    edges = [road + pavement + verge for verge in verges]
    tram = "train" not in style.without and rng.random() < 0.3
    _paint_end(canvas, rng)
    _paint_ground(canvas, road, pavement if "terrain" not in style.without else _END, tram=tram, rng=rng)
    for side, edge in zip((-1, 1), edges, strict=True):
        _paint_side(canvas, side, edge + 9.0, rng, tall=True, without=style.without)
        _paint_side(canvas, side, edge, rng, tall=False, without=style.without)
    for draw, place in sorted(_placed(road, pavement, edges, tram, style, rng), key=lambda item: -item[1][1]):
        draw(canvas, place, rng)
    if style.hood:
        _paint_hood(canvas, rng)
    return canvas


def _paint_end(canvas: Canvas, rng: np.random.Generator) -> None:
    """What closes the street far away: houses and trees of several heights below the sky."""
    right, down = canvas.camera.rays()
    across = right[0] * _END
    above = canvas.camera.height - down * _END
    depth = np.full_like(across, _END)
    for name, low, high, count in (("building", 6.0, 22.0, 9), ("vegetation", 3.0, 12.0, 14)):
        ends = np.sort(rng.uniform(-70, 70, count))
        heights = rng.uniform(low, high, count + 1) * (rng.random(count + 1) < 0.8)
        colours = np.asarray(_FACADES)[rng.integers(len(_FACADES), size=count + 1)]
        if name == "vegetation":
            colours = np.asarray(_HEDGE) * rng.uniform(0.7, 1.3, (count + 1, 1))
        which = np.searchsorted(ends, across)
        canvas.fill(_ALL, (above > -1.0) & (above < heights[which]), name, colours[which], depth)


def _paint_ground(canvas: Canvas, road: float, pavement: float, *, tram: bool, rng: np.random.Generator) -> None:
    camera = canvas.camera
    first = int(np.ceil(camera.horizon + camera.focal * camera.height / _END))
    right, down = camera.rays()
    depth = (camera.height / down[first:]).astype(np.float32)
    part = np.s_[first:, :]
    across = right * depth + camera.side
    off = np.abs(across)
    rough = smooth_noise(off.shape, (14, 40), rng)
    fine = rng.standard_normal(off.shape, dtype=np.float32)
    shade = (1.0 + 0.06 * rough + 0.05 * fine)[..., None]
    asphalt = float(rng.uniform(0.17, 0.25)) * np.asarray([1.0, 1.0, 1.03], np.float32)
    slabs = float(rng.uniform(0.36, 0.46)) * np.asarray([1.02, 1.0, 0.95], np.float32)
    joint = (np.mod(depth, 1.5) < 0.12) | (np.mod(off - road, 0.9) < 0.06)
    green = np.asarray([0.22, 0.29, 0.10], np.float32) * (1.0 + 0.16 * rough + 0.12 * fine)[..., None]
    everywhere = np.ones(off.shape, bool)
    canvas.fill(part, everywhere, "terrain", green, depth)
    canvas.fill(part, off < road + pavement, "sidewalk", slabs * shade * np.where(joint, 0.82, 1.0)[..., None], depth)
    canvas.fill(part, off < road + 0.18, "sidewalk", slabs * 1.18, depth)
    canvas.fill(part, off < road, "road", asphalt * shade, depth)
    if tram:
        rails = (np.abs(off - 0.9) < 0.07) | (np.abs(off - 2.3) < 0.07)
        canvas.colour[part][rails] = 0.10
    offset = float(rng.uniform(0, 6))
    dashes = (off < 0.075) & (np.mod(depth + offset, 6.0) < 3.0)
    edge = np.abs(off - road + 0.35) < 0.06
    crossing = float(rng.uniform(12, 60)) if rng.random() < 0.4 else -10.0
    zebra = (np.abs(depth - crossing) < 1.6) & (np.mod(across, 1.0) < 0.5) & (off < road - 0.3)
    paint = dashes | (edge & (rng.random() < 0.5)) | zebra
    canvas.colour[part][paint] = 0.70 * shade[paint]
    canvas.marking[part][paint] = True


def _paint_side(
    canvas: Canvas, side: int, edge: float, rng: np.random.Generator, *, tall: bool, without: frozenset[str]
) -> None:
    """Paint a row of buildings, walls, fences and hedges along one side of the street."""
    camera = canvas.camera
    right, down = camera.rays()
    toward = side * right[0]
    # The sides are planes along the street: every column shows one depth of them.
    depth = ((edge - side * camera.side) / np.maximum(toward, 1e-6)).astype(np.float32)
    kinds = ("building", "vegetation") if tall else ("building", "wall", "fence", "vegetation", "")
    shares = (0.65, 0.35) if tall else (0.46, 0.11, 0.13, 0.16, 0.14)
    ends = np.cumsum(rng.uniform(7.0, 20.0, 32)) - float(rng.uniform(0, 12))
    which = np.searchsorted(ends, depth)
    sunny = 1.0 if side > 0 else 0.74
    bumps = smooth_noise((camera.rows, camera.columns), (24, 60), rng)
    for index, kind in enumerate(str(kind) for kind in rng.choice(kinds, 32, p=shares)):
        columns = np.flatnonzero((which == index) & (depth < _END))
        if not kind or kind in without or not columns.size:
            continue
        part = np.s_[:, columns[0] : columns[-1] + 1]
        low, high = {"building": (6.0, 17.0), "vegetation": (1.4, 7.0), "wall": (1.2, 2.8), "fence": (1.1, 2.0)}[kind]
        height = float(rng.uniform(low, high)) + (3.0 if tall else 0.0)
        there = depth[part[1]][None]
        above = camera.height - down * there
        mask = (above > 0) & (above < height)
        if kind == "building":
            _facade(canvas, part, mask, there, above, height, sunny, rng)
        elif kind == "vegetation":
            mask = (above > 0) & (above < height * (0.85 + 0.18 * bumps[part]))
            light = (0.75 + 0.22 * bumps[part] + 0.25 * np.clip(above / height, 0, 1)) * (0.5 + 0.5 * sunny)
            canvas.fill(part, mask, kind, np.asarray(_HEDGE, np.float32) * light[..., None], there)
        elif kind == "wall":
            colour = np.asarray(_WALLS[int(rng.integers(2))], np.float32) * sunny
            joint = (np.mod(above, 0.4) < 0.05) | (np.mod(there, 1.2) < 0.06)
            canvas.fill(part, mask, kind, colour * np.where(joint, 0.7, 1.0)[..., None], there)
        else:
            colour = np.asarray(_FENCES[int(rng.integers(3))], np.float32) * sunny
            bars = (np.mod(there, 0.5) < 0.2) | (np.mod(above + 0.1, 0.8) < 0.14)
            canvas.fill(part, mask, kind, colour * np.where(bars, 1.0, 0.35)[..., None], there)


def _facade(
    canvas: Canvas,
    part: tuple[slice, slice],
    mask: Array,
    depth: Array,
    above: Array,
    height: float,
    sunny: float,
    rng: np.random.Generator,
) -> None:
    """Paint a house front with rows of windows, some of them lit at night, and shops at its foot."""
    colour = np.asarray(_FACADES[int(rng.integers(len(_FACADES)))], np.float32) * float(rng.uniform(0.85, 1.15))
    wide, floor = float(rng.uniform(1.8, 3.2)), float(rng.uniform(2.8, 3.4))
    column, row = np.floor(depth / wide), np.floor(above / floor)
    inside_column, inside_row = depth / wide - column, above / floor - row
    window = (np.abs(inside_column - 0.5) < 0.24) & (np.abs(inside_row - 0.5) < 0.27) & (above < height - 0.5)
    lit = window & (np.mod(np.sin(column * 12.9898 + row * 78.233) * 43758.5453, 1.0) < 0.22)
    ledge = (inside_row < 0.06) | (above > height - 0.35)
    canvas.fill(part, mask, "building", colour * (np.where(ledge, 0.82, 1.0)[..., None] * sunny), depth)
    canvas.colour[part][mask & window] = np.asarray([0.13, 0.16, 0.20], np.float32) * sunny
    canvas.glow[part][mask & lit] = np.asarray([0.75, 0.55, 0.28], np.float32) * 0.8
    if rng.random() < 0.4:
        shop = mask & (above < 0.85 * floor) & (above > 0.5) & (np.abs(inside_column - 0.5) < 0.42)
        canvas.colour[part][shop] = np.asarray([0.20, 0.20, 0.20], np.float32)
        canvas.glow[part][shop] = np.asarray([0.95, 0.85, 0.62], np.float32) * 0.45


def _placed(
    road: float, pavement: float, edges: list[float], tram: bool, style: Style, rng: np.random.Generator
) -> list[tuple[things.Draw, things.Place]]:
    """Where everything stands: along the kerbs, on the pavements, in the lanes."""
    found: list[tuple[things.Draw, things.Place]] = []
    for side, edge in zip((-1.0, 1.0), edges, strict=True):
        kerb, inner = side * (road + 0.45), side * (road + pavement)
        for ahead in np.arange(rng.uniform(6, 18), 90, rng.uniform(14, 24)):
            found.append((things.lamp, (kerb, float(ahead))))
        signs: list[things.Draw] = [things.sign, things.sign, things.light]
        for ahead in np.cumsum(rng.uniform(5, 24, 5)) + 3:
            found.append((signs[int(rng.integers(3))], (kerb + side * float(rng.uniform(-0.1, 0.5)), float(ahead))))
        if edge > abs(inner) + 0.5:
            plants: list[things.Draw] = [things.tree, things.tree, things.bush]
            for ahead in np.cumsum(rng.uniform(5, 16, 7)) + 2:
                found.append((plants[int(rng.integers(3))], (side * (edge - 0.5), float(ahead))))
        elif rng.random() < 0.5:
            for ahead in np.arange(rng.uniform(8, 20), 90, rng.uniform(9, 16)):
                found.append((things.tree, (kerb + side * 0.3, float(ahead))))
        for _ in range(rng.poisson(4.5 * style.crowd)):
            across = side * float(rng.uniform(road + 0.6, road + pavement - 0.2))
            found.append((things.person, (across, float(rng.uniform(5, 45)))))
        left: list[things.Draw] = [things.bicycle, things.parked_motorcycle]
        for _ in range(rng.poisson(1.6 * style.crowd)):
            found.append((left[int(rng.random() < 0.4)], (kerb + side * 0.5, float(rng.uniform(5, 30)))))
        if rng.random() < 0.7:  # a row of parked cars
            start, end = np.sort(rng.uniform(7, 80, 2))
            for ahead in np.arange(start, end, 6.0):
                if rng.random() < 0.8:
                    found.append((things.car, (side * (road - 1.0), float(ahead))))
    heavy: list[things.Draw] = [
        draw for draw, name in ((things.truck, "truck"), (things.bus, "bus")) if name not in style.without
    ]
    lanes = [-0.35 * road, 0.35 * road]
    for lane in lanes:
        ahead = float(rng.uniform(9, 26))
        while ahead < 95:
            chance = float(rng.random())
            if chance < 0.60 * min(style.crowd, 1.3):
                found.append((things.car, (lane, ahead)))
            elif chance > 0.84:
                found.append((heavy[int(rng.integers(len(heavy)))], (lane, ahead)))
                ahead += 8.0
            ahead += float(rng.uniform(9, 26))
    if tram:
        found.append((things.train, (-1.6, float(rng.uniform(14, 45)))))
    for _ in range(rng.poisson(1.1 * style.crowd)):
        found.append((things.cyclist, (float(rng.choice([-1.0, 1.0])) * (road - 2.2), float(rng.uniform(6, 30)))))
    for _ in range(rng.poisson(0.6 * style.crowd)):
        found.append((things.motorcycle, (float(rng.uniform(-0.6, 0.6)) * road, float(rng.uniform(6, 25)))))
    if rng.random() < 0.3 * style.crowd:  # someone crosses
        found.append((things.person, (float(rng.uniform(-0.8, 0.8)) * road, float(rng.uniform(9, 30)))))
    return found


def _paint_hood(canvas: Canvas, rng: np.random.Generator) -> None:
    camera = canvas.camera
    across = (np.arange(camera.columns)[None] + 0.5) / camera.columns - 0.5
    edge = camera.rows * (0.925 + 0.18 * across**2)
    mask = np.arange(camera.rows)[:, None] + 0.5 > edge
    sheen = 0.08 + 0.05 * np.clip(1.0 - (np.arange(camera.rows)[:, None] - edge) / (0.03 * camera.rows), 0, 1)
    canvas.fill(_ALL, mask, "ego vehicle", np.repeat(sheen[..., None], 3, axis=-1), np.full(camera.columns, 2.0))


def labels_of(canvas: Canvas, step: int) -> Array:
    """Label ids of Cityscapes at a coarser size, one pixel of ``step`` times ``step``."""
    return canvas.labels[step // 2 :: step, step // 2 :: step].copy()


def marking_of(canvas: Canvas, step: int) -> Array:
    """Whether the pixels of :func:`labels_of` are paint on the road."""
    shown = canvas.marking & (canvas.labels == IDS["road"])
    return shown[step // 2 :: step, step // 2 :: step].copy()
