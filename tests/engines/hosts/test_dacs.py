# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""DACS against hand-made mixes."""

from __future__ import annotations

import pytest
import torch

from dacal_med.engines.hosts import DACS
from dacal_med.io.errors import InputError
from tests.engines.hosts.builders import example


def test_dacs_pastes_source_classes_onto_the_target():
    batch, mask, soft, hard = example()
    source, mix = DACS().terms(batch, mask, soft, hard)
    assert (source.name, source.truth, mix.name, mix.truth) == ("source", True, "mix", False)
    assert mix.batch.image.view(-1).tolist() == [-5.0, 5.0, 5.0, -5.0]
    torch.testing.assert_close(mix.batch.targets[0, 1].view(-1), torch.tensor([0.3, 1.0, 1.0, 0.3]))
    torch.testing.assert_close(mix.batch.weights.view(-1), torch.tensor([0.4, 1.0, 1.0, 0.4]))


@pytest.mark.parametrize(("complement", "expected"), [("same", [0.0, 0.3, 0.3, 0.0]), ("hard", [0.0, 0.0, 0.0, 0.0])])
def test_complement_shows_the_other_parts(complement, expected):
    batch, mask, soft, hard = example()
    _, mix, other = DACS(complement=complement).terms(batch, mask, soft, hard)
    assert other.name == "complement"
    assert other.batch.image.view(-1).tolist() == [5.0, -5.0, -5.0, 5.0]
    torch.testing.assert_close(other.batch.targets[0, 1].view(-1), torch.tensor(expected))
    # The source voxel that is ignored stays ignored.
    torch.testing.assert_close(other.batch.weights.view(-1), torch.tensor([1.0, 0.4, 0.4, 0.0]))
    torch.testing.assert_close(mix.batch.targets[0, 1].view(-1), torch.tensor([0.3, 1.0, 1.0, 0.3]))


def test_before_self_training_the_source_is_all():
    batch, _, _, _ = example()
    assert [t.name for t in DACS(complement="hard").terms(batch, None, None, None)] == ["source"]


def test_an_unknown_complement_is_refused():
    with pytest.raises(InputError, match="found 'soft', wanted one of 'none', 'hard', 'same'"):
        DACS(complement="soft")
