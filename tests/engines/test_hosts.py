# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Hosts against hand-made mixes."""

from __future__ import annotations

import pytest
import torch

from dacal_med.core.batch import from_labels
from dacal_med.core.pseudo_labels import PseudoLabels
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import DACS, Host, SourceOnly, make_host
from dacal_med.errors import InputError


def example():
    labels = torch.tensor([[0, 1], [1, 255]]).view(1, 1, 2, 2)
    source = from_labels(torch.full((1, 1, 2, 2), 5.0), labels, 2)
    batch = DomainBatch(source, labels, torch.full((1, 1, 2, 2), -5.0), None)
    mask = torch.tensor([[False, True], [True, False]]).view(1, 1, 2, 2)
    soft = torch.tensor([0.7, 0.3]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    hard = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1).expand(1, 2, 2, 2)
    weight, quality = torch.full((1, 1, 2, 2), 0.4), torch.tensor([0.4])
    return batch, mask, PseudoLabels(soft, weight, quality), PseudoLabels(hard, weight, quality)


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


def test_warm_up_and_source_only_learn_from_the_source():
    batch, mask, soft, hard = example()
    assert [t.name for t in DACS(complement="hard").terms(batch, None, None, None)] == ["source"]
    assert [t.name for t in SourceOnly().terms(batch, mask, soft, hard)] == ["source"]
    assert isinstance(SourceOnly(), Host)
    assert isinstance(DACS(), Host)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(InputError, match=r"host: found 'dcas', wanted one of \['dacs', 'source_only'\]"):
        make_host("dcas")
    with pytest.raises(InputError, match="complemnt"):
        make_host("dacs", complemnt="hard")
    with pytest.raises(InputError, match="found 'soft', wanted one of 'none', 'hard', 'same'"):
        make_host("dacs", complement="soft")
