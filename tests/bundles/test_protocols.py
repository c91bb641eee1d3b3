# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The published protocols of the driving bundles as they are planned and shown: overlays, folders, subsets, columns."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from dacal_med.bundle import read_config
from dacal_med.errors import InputError
from tests.bundles.builders import BUNDLES

GTA, SYNTHIA = BUNDLES["dacal_gta2cityscapes"], BUNDLES["dacal_synthia2cityscapes"]
CAMVID = ("Sky", "Building", "Road", "Car", "Pedestrian")


def settings(bundle, *names, **overrides):
    parser = ConfigParser(read_config([bundle.configs / f"{name}.json" for name in names]))
    parser.update(overrides)
    return parser


def test_other_names_for_things_are_wanted_by_the_key(tmp_path):
    config = settings(GTA, "train", "published", class_names=list(CAMVID))
    with pytest.raises(Exception) as error:
        config.get_parsed_content("host#thing_classes")
    cause = error.value
    while not isinstance(cause, InputError):
        cause = cause.__cause__ or cause.__context__
    assert "things: found traffic light, traffic sign, person" in str(cause)
    assert "wanted --things \"['NAME', ...]\" with some of Sky, Building, Road, Car, Pedestrian" in str(cause)
    config = settings(GTA, "train", "published", class_names=list(CAMVID), things=["Car", "Pedestrian", "Bicyclist"])
    assert config.get_parsed_content("host#thing_classes") == ["Car", "Pedestrian"]
