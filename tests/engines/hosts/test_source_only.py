# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The lower bound."""

from __future__ import annotations

from dacal_med.engines.hosts import SourceOnly
from tests.engines.hosts.builders import example


def test_it_learns_from_the_source_whatever_is_given():
    batch, mask, soft, hard = example()
    (term,) = SourceOnly().terms(batch, mask, soft, hard)
    assert (term.name, term.truth) == ("source", True)
    assert term.batch is batch.source
    assert not SourceOnly().uses_target
    assert not SourceOnly().mask_generator(batch.source_labels).any()
