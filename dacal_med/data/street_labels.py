# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The label space of Cityscapes: label ids as its owners write them, the 19 train ids that are learnt, colours.

From ``labels.py`` of cityscapesScripts (Cordts et al., CVPR 2016), against which every entry is tested. ACDC and Dark
Zurich have the same ids; the labels of GTA5 are the same ids with a palette.
"""

from __future__ import annotations

from typing import NamedTuple

IGNORED = 255  # the train id of what is neither learnt nor evaluated


class StreetLabel(NamedTuple):
    """A label of Cityscapes.

    Attributes:
        id: the value in ``*_labelIds.png``.
        name: as Cityscapes calls it.
        train_id: 0 to 18, or 255 for what is ignored.
        colour: RGB in colour-coded label files.
    """

    id: int
    name: str
    train_id: int
    colour: tuple[int, int, int]


# License plates have the id -1, which no label file holds: they are drawn as part of what they are on.
STREET_LABELS: tuple[StreetLabel, ...] = (
    StreetLabel(0, "unlabeled", IGNORED, (0, 0, 0)),
    StreetLabel(1, "ego vehicle", IGNORED, (0, 0, 0)),
    StreetLabel(2, "rectification border", IGNORED, (0, 0, 0)),
    StreetLabel(3, "out of roi", IGNORED, (0, 0, 0)),
    StreetLabel(4, "static", IGNORED, (0, 0, 0)),
    StreetLabel(5, "dynamic", IGNORED, (111, 74, 0)),
    StreetLabel(6, "ground", IGNORED, (81, 0, 81)),
    StreetLabel(7, "road", 0, (128, 64, 128)),
    StreetLabel(8, "sidewalk", 1, (244, 35, 232)),
    StreetLabel(9, "parking", IGNORED, (250, 170, 160)),
    StreetLabel(10, "rail track", IGNORED, (230, 150, 140)),
    StreetLabel(11, "building", 2, (70, 70, 70)),
    StreetLabel(12, "wall", 3, (102, 102, 156)),
    StreetLabel(13, "fence", 4, (190, 153, 153)),
    StreetLabel(14, "guard rail", IGNORED, (180, 165, 180)),
    StreetLabel(15, "bridge", IGNORED, (150, 100, 100)),
    StreetLabel(16, "tunnel", IGNORED, (150, 120, 90)),
    StreetLabel(17, "pole", 5, (153, 153, 153)),
    StreetLabel(18, "polegroup", IGNORED, (153, 153, 153)),
    StreetLabel(19, "traffic light", 6, (250, 170, 30)),
    StreetLabel(20, "traffic sign", 7, (220, 220, 0)),
    StreetLabel(21, "vegetation", 8, (107, 142, 35)),
    StreetLabel(22, "terrain", 9, (152, 251, 152)),
    StreetLabel(23, "sky", 10, (70, 130, 180)),
    StreetLabel(24, "person", 11, (220, 20, 60)),
    StreetLabel(25, "rider", 12, (255, 0, 0)),
    StreetLabel(26, "car", 13, (0, 0, 142)),
    StreetLabel(27, "truck", 14, (0, 0, 70)),
    StreetLabel(28, "bus", 15, (0, 60, 100)),
    StreetLabel(29, "caravan", IGNORED, (0, 0, 90)),
    StreetLabel(30, "trailer", IGNORED, (0, 0, 110)),
    StreetLabel(31, "train", 16, (0, 80, 100)),
    StreetLabel(32, "motorcycle", 17, (0, 0, 230)),
    StreetLabel(33, "bicycle", 18, (119, 11, 32)),
)
TRAIN_NAMES: tuple[str, ...] = tuple(
    label.name for label in sorted(STREET_LABELS, key=lambda label: label.train_id) if label.train_id != IGNORED
)
