# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The label space of streets against cityscapesScripts, entry by entry."""

from __future__ import annotations

import pytest
from cityscapesscripts.helpers.labels import Label, id2label, labels, trainId2label

from dacal_med.data.street_labels import IGNORED, STREET_LABELS, TRAIN_NAMES, StreetLabel


@pytest.mark.parametrize("label", STREET_LABELS, ids=lambda label: label.name)
def test_every_label_is_that_of_cityscapesscripts(label: StreetLabel):
    theirs: Label = id2label[label.id]
    assert label == (theirs.id, theirs.name, theirs.trainId, theirs.color)
    assert (label.train_id == IGNORED) == theirs.ignoreInEval


def test_no_label_is_missing():
    # The license plate has a negative id, which cityscapesScripts does not draw into label files.
    assert [label.id for label in STREET_LABELS] == [label.id for label in labels if label.id >= 0]


def test_train_names_are_in_the_order_of_train_ids():
    assert list(TRAIN_NAMES) == [trainId2label[index].name for index in range(19)]
