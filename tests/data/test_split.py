# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The held-out split is a partition, of the asked size, and repeats."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacal_med.data.datalist import Datalist
from dacal_med.data.split import hold_out, oracle_fold
from dacal_med.errors import InputError


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_is_a_partition_of_the_asked_size(count: int, share: float, seed: int) -> None:
    items = [f"case {n}" for n in range(count)]
    train, held_out = hold_out(items, share, seed)
    assert sorted(train + held_out) == sorted(items)
    assert not set(train) & set(held_out)
    assert train
    assert held_out
    assert abs(len(held_out) - share * count) <= 1.0
    assert (train, held_out) == hold_out(items, share, seed)
    assert train == [item for item in items if item in set(train)]


def test_seed_changes_the_split() -> None:
    assert len({tuple(hold_out(range(30), 0.2, seed)[1]) for seed in range(5)}) > 1


def test_default_is_a_fifth() -> None:
    assert [len(part) for part in hold_out(range(24))] == [19, 5]


@pytest.mark.parametrize("items", [[], [1]])
def test_too_few(items: list[int]) -> None:
    with pytest.raises(InputError, match=f"has {len(items)} labelled"):
        hold_out(items)


def test_nothing_may_be_held_out() -> None:
    assert hold_out([1, 2, 3], 0.0) == ([1, 2, 3], [])


@pytest.mark.parametrize("share", [1.0, -1.0, 2.0])
def test_wrong_share(share: float) -> None:
    with pytest.raises(InputError, match=f"held_out_share: found {share}"):
        hold_out([1, 2, 3], share)


def test_the_folds_of_the_oracle_evaluate_every_case_once(tmp_path):
    cases = [{"image": f"i{k}", "label": f"l{k}"} for k in range(5)]
    data = Datalist(
        "d", tmp_path, ("a", "b"), (0, 1), (), ({"image": "s", "label": "t"},), ({"image": "u"},), tuple(cases)
    )
    data = dataclasses.replace(data, modality={"source": "CT", "target": "MR"})
    folds = [oracle_fold(data, fold) for fold in range(2)]
    assert [f.target_val for f in folds] == [tuple(cases[0::2]), tuple(cases[1::2])]
    assert [f.source for f in folds] == [tuple(cases[1::2]), tuple(cases[0::2])]
    assert all(f.modality == {"source": "MR", "target": "MR"} and f.target_train == data.target_train for f in folds)
    with pytest.raises(InputError, match="has 1 labelled image"):
        oracle_fold(dataclasses.replace(data, target_val=tuple(cases[:1])), 0)
