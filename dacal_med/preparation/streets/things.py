# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Things that stand in a street: poles, signs, lights, trees, people, and everything with wheels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dacal_med.preparation.streets.canvas import (
    Canvas,
    Colour,
    ellipse,
    line,
    rectangle,
    ring,
    trapezium,
    union,
)

Place = tuple[float, float]  # metres right of the middle of the street, and ahead
Draw = Callable[[Canvas, Place, np.random.Generator], None]
STEEL: Colour = (0.42, 0.43, 0.44)
RUBBER: Colour = (0.05, 0.05, 0.06)
GLASS: Colour = (0.10, 0.13, 0.16)
SKIN: tuple[Colour, ...] = ((0.80, 0.60, 0.48), (0.55, 0.38, 0.28), (0.32, 0.21, 0.15))
CLOTHES: tuple[Colour, ...] = (
    *((0.12, 0.13, 0.20), (0.45, 0.10, 0.10), (0.60, 0.60, 0.62), (0.10, 0.28, 0.16), (0.66, 0.55, 0.20)),
    *((0.16, 0.30, 0.52), (0.30, 0.22, 0.16)),
)
PAINT: tuple[Colour, ...] = (
    *((0.72, 0.73, 0.74), (0.10, 0.10, 0.11), (0.42, 0.44, 0.46), (0.48, 0.06, 0.06), (0.10, 0.18, 0.42)),
    *((0.86, 0.86, 0.84), (0.20, 0.26, 0.24)),
)


def _pick(colours: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    red, green, blue = colours[int(rng.integers(len(colours)))]
    factor = float(rng.uniform(0.85, 1.15))
    return (red * factor, green * factor, blue * factor)


def _times(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _shadow(canvas: Canvas, place: Place, half: float) -> None:
    """Darken the ground below a thing."""
    box = (-half, half, -0.08, 0.08)
    canvas.stand(place, box, ellipse(0, 0, half, 0.08), None, (0.07, 0.07, 0.075))


def _post(canvas: Canvas, place: Place, height: float, width: float = 0.14) -> None:
    half = width / 2
    canvas.stand(place, (-half, half, 0, height), rectangle(-half, half, 0, height), "pole", STEEL, shade=0.5)


def lamp(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A street lamp, its arm over the road."""
    height = float(rng.uniform(5.5, 7.5))
    arm = -np.sign(place[0]) * 1.4
    _post(canvas, place, height, 0.18)
    box = (-1.7, 1.7, height - 0.2, height + 0.3)
    canvas.stand(place, box, line(0, height, arm, height + 0.15, 0.12), "pole", STEEL)
    canvas.stand(place, box, ellipse(arm, height + 0.1, 0.3, 0.12), "pole", (1.0, 0.82, 0.52), glow=2.4)


def sign(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A traffic sign: prohibition, warning, order or direction."""
    kind = int(rng.integers(4))
    height = float(rng.uniform(2.2, 2.8))
    _post(canvas, place, height, 0.1)
    box = (-0.9, 0.9, height - 0.6, height + 0.6)
    if kind == 0:
        canvas.stand(place, box, ellipse(0, height, 0.38, 0.38), "traffic sign", (0.75, 0.08, 0.08))
        canvas.stand(place, box, ellipse(0, height, 0.27, 0.27), "traffic sign", (0.92, 0.92, 0.90))
    elif kind == 1:
        canvas.stand(
            place, box, trapezium(0.45, 0.02, height - 0.36, height + 0.42), "traffic sign", (0.75, 0.08, 0.08)
        )
        canvas.stand(
            place, box, trapezium(0.28, 0.02, height - 0.27, height + 0.23), "traffic sign", (0.92, 0.92, 0.90)
        )
    elif kind == 2:
        canvas.stand(place, box, ellipse(0, height, 0.38, 0.38), "traffic sign", (0.08, 0.22, 0.62))
        canvas.stand(place, box, rectangle(-0.06, 0.06, height - 0.2, height + 0.2), "traffic sign", (0.9, 0.9, 0.9))
    else:
        canvas.stand(place, box, rectangle(-0.75, 0.75, height - 0.3, height + 0.3), "traffic sign", (0.80, 0.66, 0.06))
        canvas.stand(place, box, rectangle(-0.55, 0.5, height - 0.06, height + 0.06), "traffic sign", RUBBER)


def light(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A traffic light that shows red, yellow or green."""
    height = float(rng.uniform(2.6, 3.4))
    _post(canvas, place, height, 0.14)
    box = (-0.25, 0.25, height - 0.1, height + 1.1)
    canvas.stand(place, box, rectangle(-0.2, 0.2, height, height + 1.0), "traffic light", (0.06, 0.07, 0.06))
    shown = int(rng.choice([0, 0, 1, 2, 2]))
    colours: tuple[Colour, ...] = ((0.1, 0.95, 0.45), (1.0, 0.75, 0.1), (1.0, 0.12, 0.08))
    for index, colour in enumerate(colours):
        on = index == shown
        spot = ellipse(0, height + 0.19 + 0.31 * index, 0.13, 0.13)
        canvas.stand(place, box, spot, "traffic light", colour if on else _times(colour, 0.15), glow=2.2 if on else 0.0)


def tree(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A tree with a crown of leaves in tufts."""
    trunk, crown = float(rng.uniform(1.8, 2.8)), float(rng.uniform(1.5, 2.6))
    _shadow(canvas, place, 0.6 * crown)
    bark = rectangle(-0.16, 0.16, 0, trunk + crown)
    canvas.stand(place, (-0.2, 0.2, 0, trunk + crown), bark, "vegetation", (0.24, 0.17, 0.11))
    green = _pick(((0.16, 0.30, 0.09), (0.24, 0.36, 0.10), (0.12, 0.24, 0.10)), rng)
    for count in range(26):
        angle, far = rng.uniform(0, 2 * np.pi), crown * np.sqrt(rng.uniform(0, 1))
        x, y = far * np.cos(angle) * 0.8, trunk + crown + far * np.sin(angle)
        size = crown * rng.uniform(0.22, 0.42)
        bright = 0.55 + 0.35 * (y - trunk) / (2 * crown) + 0.015 * count
        box = (x - size, x + size, y - size, y + size)
        canvas.stand(place, box, ellipse(x, y, size, size * 0.8), "vegetation", _times(green, bright))


def bush(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A bush."""
    green = _pick(((0.16, 0.28, 0.10), (0.26, 0.34, 0.12)), rng)
    for _ in range(8):
        x, size = rng.uniform(-0.7, 0.7), rng.uniform(0.25, 0.5)
        colour = _times(green, float(rng.uniform(0.6, 1.2)))
        canvas.stand(place, (-1.3, 1.3, 0, 1.5), ellipse(x, size, size, size), "vegetation", colour)


def _body(canvas: Canvas, place: Place, foot: float, height: float, name: str, rng: np.random.Generator) -> None:
    """Head, upper body and arms of a person whose feet would be at ``foot``."""
    coat = _pick(CLOTHES, rng)
    shoulders, hips, neck = 0.24 * height / 1.7, foot + 0.47 * height, foot + 0.84 * height
    box = (-0.5, 0.5, foot, foot + height)
    torso = union(
        trapezium(0.7 * shoulders, shoulders, hips, neck),
        line(-shoulders, neck - 0.05, -1.25 * shoulders, hips, 0.1),
        line(shoulders, neck - 0.05, 1.25 * shoulders, hips, 0.1),
    )
    canvas.stand(place, box, torso, name, coat, shade=0.3)
    head = foot + 0.92 * height
    canvas.stand(place, box, ellipse(0, head, 0.1, 0.13), name, _pick(SKIN, rng))
    hair = lambda x, y: ellipse(0, head, 0.11, 0.14)(x, y) & (y > head + 0.03)  # noqa: E731
    canvas.stand(place, box, hair, name, _pick(((0.08, 0.06, 0.05), (0.30, 0.20, 0.10), (0.45, 0.40, 0.36)), rng))


def person(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A person who walks or stands."""
    height = float(rng.uniform(1.5, 1.9))
    _shadow(canvas, place, 0.4)
    stride = float(rng.uniform(0.05, 0.3))
    legs = union(
        line(0.08, 0.5 * height, 0.08 + stride / 2, 0.05, 0.16),
        line(-0.08, 0.5 * height, -0.08 - stride / 2, 0.05, 0.16),
    )
    canvas.stand(place, (-0.5, 0.5, 0, height), legs, "person", _pick(CLOTHES, rng))
    _body(canvas, place, 0.0, height, "person", rng)


def bicycle(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A bicycle from its side."""
    wheels = union(ring(-0.5, 0.34, 0.31, 0.09), ring(0.5, 0.34, 0.31, 0.09))
    frame = union(
        line(-0.5, 0.34, -0.1, 0.36, 0.07),
        line(-0.1, 0.36, 0.35, 0.85, 0.07),
        line(-0.2, 0.88, -0.1, 0.36, 0.07),
        line(-0.2, 0.8, 0.35, 0.82, 0.07),
        line(0.35, 1.0, 0.5, 0.34, 0.07),
        line(0.25, 1.02, 0.45, 1.02, 0.07),
        rectangle(-0.32, -0.08, 0.86, 0.95),
    )
    box = (-0.9, 0.9, 0, 1.1)
    canvas.stand(place, box, wheels, "bicycle", RUBBER)
    canvas.stand(place, box, frame, "bicycle", _pick(PAINT, rng))


def cyclist(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A bicycle with its rider."""
    _shadow(canvas, place, 0.7)
    bicycle(canvas, place, rng)
    legs = union(line(-0.12, 0.95, 0.05, 0.55, 0.15), line(0.05, 0.55, -0.05, 0.2, 0.13))
    canvas.stand(place, (-0.5, 0.5, 0, 1.2), legs, "rider", _pick(CLOTHES, rng))
    _body(canvas, place, 0.15, 1.65, "rider", rng)


def motorcycle(canvas: Canvas, place: Place, rng: np.random.Generator, *, ridden: bool = True) -> None:
    """A motorcycle from behind, with or without its rider."""
    _shadow(canvas, place, 0.5)
    box = (-0.6, 0.6, 0, 1.3)
    paint = _pick(PAINT, rng)
    canvas.stand(place, box, rectangle(-0.12, 0.12, 0, 0.62), "motorcycle", RUBBER)
    canvas.stand(
        place, box, union(ellipse(0, 0.72, 0.3, 0.28), rectangle(-0.42, 0.42, 0.98, 1.05)), "motorcycle", paint
    )
    if ridden:
        _body(canvas, place, 0.1, 1.6, "rider", rng)
        legs = union(line(-0.15, 0.9, -0.3, 0.4, 0.15), line(0.15, 0.9, 0.3, 0.4, 0.15))
        canvas.stand(place, box, legs, "rider", _pick(CLOTHES, rng))
    canvas.stand(place, box, ellipse(0, 0.62, 0.09, 0.06), "motorcycle", (0.9, 0.08, 0.06), glow=1.2)


def parked_motorcycle(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A motorcycle without a rider."""
    motorcycle(canvas, place, rng, ridden=False)


def car(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A car, from behind where it drives on our side."""
    paint, half, top = _pick(PAINT, rng), float(rng.uniform(0.84, 0.95)), float(rng.uniform(1.38, 1.7))
    outline = union(rectangle(-half, half, 0.28, 0.92), trapezium(0.95 * half, 0.68 * half, 0.88, top))
    box = (-half, half, 0.0, top)
    _shadow(canvas, place, 1.05 * half)
    # The side: the same outline from its far end to its near one; the glass is a band of it.
    for ahead in np.linspace(4.1, 0.0, 9)[:-1]:
        there = (place[0], place[1] + float(ahead))
        canvas.stand(there, box, outline, "car", _times(paint, 0.62))
        if 0.7 < ahead < 3.2:
            canvas.stand(there, box, trapezium(0.93 * half, 0.74 * half, 0.95, top - 0.12), "car", GLASS)
        else:
            canvas.stand(there, box, rectangle(-half, half, 0.0, 0.5), "car", RUBBER)
    wheels = union(rectangle(-0.95 * half, -0.62 * half, 0, 0.4), rectangle(0.62 * half, 0.95 * half, 0, 0.4))
    canvas.stand(place, box, wheels, "car", RUBBER)
    canvas.stand(place, box, outline, "car", paint, shade=0.25)
    canvas.stand(place, box, trapezium(0.80 * half, 0.62 * half, 0.95, top - 0.1), "car", GLASS)
    ours = place[0] > 0
    colour: Colour = (0.85, 0.06, 0.05) if ours else (1.0, 0.97, 0.85)
    lights = union(ellipse(-0.78 * half, 0.74, 0.14, 0.09), ellipse(0.78 * half, 0.74, 0.14, 0.09))
    canvas.stand(place, box, lights, "car", colour, glow=1.3 if ours else 3.0)
    canvas.stand(place, box, rectangle(-0.26, 0.26, 0.45, 0.57), "car", (0.85, 0.85, 0.80))


def _box_vehicle(
    canvas: Canvas,
    place: Place,
    name: str,
    size: tuple[float, float, float],
    paint: Colour,
    window: tuple[float, float],
) -> None:
    """A long vehicle: outline swept from its far end, a band of windows along its side."""
    half, top, length = size
    box = (-half, half, 0.0, top)
    outline = rectangle(-half, half, 0.35, top)
    _shadow(canvas, place, 1.05 * half)
    for ahead in np.linspace(length, 0.0, 18)[:-1]:
        there = (place[0], place[1] + float(ahead))
        canvas.stand(there, box, outline, name, _times(paint, 0.62))
        canvas.stand(there, box, rectangle(-half, half, *window), name, GLASS if int(ahead) % 3 else _times(paint, 0.5))
    wheels = union(rectangle(-0.95 * half, -0.65 * half, 0, 0.5), rectangle(0.65 * half, 0.95 * half, 0, 0.5))
    canvas.stand(place, box, wheels, name, RUBBER)
    canvas.stand(place, box, outline, name, paint, shade=0.2)


def _rear_lights(canvas: Canvas, place: Place, name: str, half: float) -> None:
    colour: Colour = (0.85, 0.06, 0.05) if place[0] > 0 else (1.0, 0.97, 0.85)
    lights = union(ellipse(-0.8 * half, 0.7, 0.15, 0.1), ellipse(0.8 * half, 0.7, 0.15, 0.1))
    canvas.stand(place, (-half, half, 0, 1.0), lights, name, colour, glow=1.5)


def truck(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A lorry with a closed load."""
    half, top = 1.2, float(rng.uniform(2.9, 3.5))
    paint = _pick(((0.75, 0.75, 0.73), (0.20, 0.32, 0.50), (0.62, 0.30, 0.10), (0.30, 0.42, 0.28)), rng)
    _box_vehicle(canvas, place, "truck", (half, top, 7.5), paint, (0.9, 0.95))
    box = (-half, half, 0, top)
    doors = union(rectangle(-0.03, 0.03, 0.9, top - 0.1), rectangle(-half, half, 0.8, 0.9))
    canvas.stand(place, box, doors, "truck", _times(paint, 0.35))
    _rear_lights(canvas, place, "truck", half)


def bus(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A bus."""
    half, top = 1.25, 3.1
    paint = _pick(((0.72, 0.10, 0.08), (0.80, 0.62, 0.10), (0.18, 0.36, 0.66), (0.78, 0.78, 0.76)), rng)
    _box_vehicle(canvas, place, "bus", (half, top, 11.0), paint, (1.2, 2.4))
    box = (-half, half, 0, top)
    canvas.stand(place, box, rectangle(-0.85 * half, 0.85 * half, 1.3, 2.35), "bus", GLASS)
    canvas.stand(place, box, rectangle(-0.6 * half, 0.6 * half, 2.6, 2.95), "bus", (0.85, 0.60, 0.10), glow=1.2)
    _rear_lights(canvas, place, "bus", half)


def train(canvas: Canvas, place: Place, rng: np.random.Generator) -> None:
    """A tram."""
    half, top = 1.2, 3.5
    paint = _pick(((0.16, 0.34, 0.58), (0.66, 0.12, 0.10), (0.24, 0.44, 0.28)), rng)
    _box_vehicle(canvas, place, "train", (half, top, 26.0), paint, (1.3, 2.6))
    box = (-half, half, 0, top + 0.6)
    canvas.stand(place, box, trapezium(0.85 * half, 0.7 * half, 1.4, 2.8), "train", GLASS)
    canvas.stand(place, box, rectangle(-half, half, 0.35, 1.0), "train", (0.80, 0.80, 0.78), shade=0.2)
    canvas.stand(place, box, line(-0.6, top, 0.4, top + 0.5, 0.08), "train", STEEL)
    _rear_lights(canvas, place, "train", half)
