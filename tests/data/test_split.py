# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The held-out split is a partition by patient, of the asked size, and repeats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacal_med.data.datalist import Datalist
from dacal_med.data.split import hold_out, oracle_fold, oracle_folds, patient_folds
from dacal_med.io.errors import InputError


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


def by_image(count: int, share: float, seed: int) -> list[int]:
    """The held-out images where nothing is known of patients, as earlier results had them."""
    number = min(max(round(share * count), 1), count - 1)
    return sorted(np.random.default_rng(seed).permutation(count)[:number].tolist())


@given(st.integers(2, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_without_patients_or_with_an_image_each_it_is_the_split_by_image(count: int, share: float, seed: int) -> None:
    wanted = by_image(count, share, seed)
    assert hold_out(range(count), share, seed)[1] == wanted
    items = [{"image": str(n)} for n in range(count)]
    assert hold_out(items, share, seed)[1] == [items[n] for n in wanted]
    items = [{**item, "patient": f"p{count - n}"} if n % 3 else item for n, item in enumerate(items)]
    assert hold_out(items, share, seed)[1] == [items[n] for n in wanted]


def test_the_split_of_24_images_is_what_it_was() -> None:
    assert hold_out(range(24), 0.2, 0)[1] == [4, 10, 11, 18, 21]


@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", None]), min_size=2, max_size=24).filter(
        lambda names: len(set(names)) > 1 or names[0] is None
    ),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_patients_are_held_out_whole(names: list[str | None], share: float, seed: int) -> None:
    items = [{"image": str(n), **({"patient": name} if name else {})} for n, name in enumerate(names)]
    train, held_out = hold_out(items, share, seed)
    assert train and held_out
    assert sorted(train + held_out, key=items.index) == items
    assert not {item["patient"] for item in train if "patient" in item} & {i.get("patient") for i in held_out}
    assert (train, held_out) == hold_out(items, share, seed)
    sizes = [names.count(name) for name in set(names) - {None}] + [1] * names.count(None)
    sums = {0}
    for size in sizes:
        sums |= {number + size for number in sums}
    nearest = min(abs(number - share * len(items)) for number in sums - {0, len(items)})
    assert abs(len(held_out) - share * len(items)) == pytest.approx(nearest)


def test_every_patient_may_be_held_out() -> None:
    items = [{"patient": name} for name in "aabbccddee"]
    held = {held_out[0]["patient"] for held_out in (hold_out(items, 0.2, seed)[1] for seed in range(40))}
    assert held == set("abcde")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_one_patient_is_held_out_and_one_is_left(share: float) -> None:
    items = [{"patient": name} for name in "aaaaaaaab"]
    train, held_out = hold_out(items, share)
    assert {len({item["patient"] for item in part}) for part in (train, held_out)} == {1}


def test_many_images_are_split_at_once() -> None:
    items = [{"patient": f"p{n // 2}"} for n in range(20001)]
    assert len(hold_out(items, 0.02)[1]) == 400


def test_of_a_lone_patient_nothing_can_be_held_out() -> None:
    items = [{"patient": "p 1"}] * 3
    with pytest.raises(
        InputError, match=r"'source' has 3 labelled image\(s\), all of patient 'p 1'; wanted at least 2"
    ):
        hold_out(items)
    assert hold_out(items, 0.0) == (items, [])


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
    one = dataclasses.replace(data, target_val=tuple({**case, "patient": "p"} for case in cases))
    assert oracle_fold(one, 0).source == folds[0].source  # something can be held out of it
    with pytest.raises(InputError, match="has 1 labelled image"):
        oracle_fold(dataclasses.replace(data, target_val=tuple(cases[:1])), 0)


def test_the_folds_of_the_oracle_keep_patients_together(tmp_path):
    cases = tuple({"image": f"i{k}", "label": f"l{k}", "patient": name} for k, name in enumerate("aabbbcc"))
    data = Datalist("d", tmp_path, ("a", "b"), (0, 1), (), ({"image": "s", "label": "t"},), ({"image": "u"},), cases)
    data = dataclasses.replace(data, modality={"source": "CT", "target": "MR"})
    assert oracle_folds(data) == [0, 0, 1, 1, 1, 0, 0]
    first, second = (oracle_fold(data, fold) for fold in range(2))
    assert second.source == first.target_val == (*cases[:2], *cases[5:])
    assert [case["image"] for case in first.source] == ["i2", "i3", "i4"]
    assert not any("patient" in case for case in first.source)  # one patient: held out by image
    assert oracle_folds(dataclasses.replace(data, target_val=cases[:2])) == [0, 1]  # one patient, two folds


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None]), max_size=20), st.integers(1, 6))
def test_patients_are_folded_whole_and_evenly(names: list[str | None], folds: int) -> None:
    items = [{"image": str(n), **({"patient": name} if name else {})} for n, name in enumerate(names)]
    found = patient_folds(items, folds)
    of: dict[str | int, set[int]] = {}
    for index, (name, fold) in enumerate(zip(names, found, strict=True)):
        of.setdefault(name or index, set()).add(fold)
    assert all(len(own) == 1 for own in of.values())
    patients = [sum(own == {fold} for own in of.values()) for fold in range(folds)]
    assert max(patients) - min(patients) <= 1
