# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Splits: the held-out part of the source, on which labels may be fitted, and the folds of the target's oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from dacal_med.data.datalist import PATIENT, Datalist
from dacal_med.io.errors import InputError

Item = TypeVar("Item")


def hold_out(items: Sequence[Item], share: float = 0.2, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Split items into a training part and a held-out part, the items of a patient together.

    Args:
        items: for example the ``source`` entries of a datalist. One without a ``"patient"`` counts as a patient.
        share: part of the items to hold out, in [0, 1), rounded to the nearest count that whole patients add up to;
            each part keeps at least one patient. 0 holds nothing out.
        seed: the same seed and items give the same split.

    Returns:
        ``(train, held_out)``, each in the order of ``items``.

    Raises:
        InputError: ``share`` is not inside [0, 1), or there are fewer than two items or patients to share out.
    """
    if not 0.0 <= share < 1.0:
        raise InputError(f"held_out_share: found {share}; wanted a number from 0 to below 1.")
    if share == 0.0:
        return list(items), []
    if len(items) < 2:
        raise InputError(f"'source' has {len(items)} labelled image(s); wanted at least 2, to hold one out.")
    count = min(max(round(share * len(items)), 1), len(items) - 1)
    members = by_patient(items)
    if len(members) < 2:
        raise InputError(
            f"'source' has {len(items)} labelled image(s), all of patient {next(iter(members))!r}; wanted at least 2 "
            "patients, to hold one out (held_out_share 0 holds nothing out)."
        )
    # As many draws as patients: where each has one item, the split is that of items without patients.
    groups = list(members.values())
    drawn = [groups[position] for position in np.random.default_rng(seed).permutation(len(groups))]
    chosen = {index for group in _adding_up_to(count, share * len(items), drawn) for index in group}
    train = [item for index, item in enumerate(items) if index not in chosen]
    held_out = [item for index, item in enumerate(items) if index in chosen]
    return train, held_out


def by_patient(items: Sequence[Any]) -> dict[int | str, list[int]]:
    """Return the indices of each patient's items, in order; an item without a ``"patient"`` is a patient by itself."""
    members: dict[int | str, list[int]] = {}
    for index, item in enumerate(items):
        patient = item.get(PATIENT) if isinstance(item, Mapping) else None
        members.setdefault(index if patient is None else str(patient), []).append(index)
    return members


def patient_folds(items: Sequence[Any], folds: int) -> list[int]:
    """Return the fold of each item, from 0: patients in turn, the items of a patient together.

    Args:
        items: entries of a datalist.
        folds: number of folds, of which the last stay empty where there are fewer patients.
    """
    fold_of = {index: k % folds for k, group in enumerate(by_patient(items).values()) for index in group}
    return [fold_of[index] for index in range(len(items))]


def _adding_up_to(count: int, wanted: float, groups: Sequence[list[int]]) -> list[list[int]]:
    """Return the first groups that have together the number of items nearest to ``count``, neither none nor all."""
    reach = [1]  # bit n of entry k: whether some of the last k groups have n items together
    for group in reversed(groups):
        reach.append(reach[-1] | reach[-1] << len(group))
    sums = [number for number in range(1, sum(map(len, groups))) if reach[-1] >> number & 1]
    left = min(sums, key=lambda number: (abs(number - count), abs(number - wanted)))
    chosen = []
    for group, rest in zip(groups, reversed(reach[:-1]), strict=True):
        if len(group) <= left and rest >> (left - len(group)) & 1:
            chosen.append(group)
            left -= len(group)
    return chosen


def oracle_folds(datalist: Datalist, folds: int = 2) -> list[int]:
    """Return in which fold of the bound "trained on target labels" each image of ``target_val`` is evaluated.

    Patients stay together where there are enough for all folds; where not, images are folded, and a network may have
    seen other images of the patient that it is evaluated on. Often one patient alone is evaluated.
    """
    cases = datalist.target_val
    if len(by_patient(cases)) < folds:
        return [index % folds for index in range(len(cases))]
    return patient_folds(cases, folds)


def oracle_fold(datalist: Datalist, fold: int, folds: int = 2) -> Datalist:
    """Return a data set whose training labels are those of the target's evaluation images, cross-validated.

    For the bound "trained on target labels" and nothing else: the images of one fold of :func:`oracle_folds` are
    evaluated, the others become the labelled source: no network is evaluated on an image whose label it has seen.

    Args:
        datalist: with ``target_val``.
        fold: which part is evaluated, from 0.
        folds: number of parts.

    Returns:
        The data set; its source has no patients if all of it is of one, so that part of it can be held out.

    Raises:
        InputError: if there are fewer evaluation images than parts.
    """
    cases = datalist.target_val
    if len(cases) < folds or not 0 <= fold < folds:
        raise InputError(
            f"{datalist.root}: 'target_val' has {len(cases)} labelled image(s) for fold {fold} of {folds}; wanted at "
            f"least {folds}, to train on some and evaluate on the others."
        )
    fold_of = oracle_folds(datalist, folds)
    source = [case for case, own in zip(cases, fold_of, strict=True) if own != fold]
    if len(by_patient(source)) < 2:
        source = [{key: value for key, value in case.items() if key != PATIENT} for case in source]
    return replace(
        datalist,
        source=tuple(source),
        target_val=tuple(case for case, own in zip(cases, fold_of, strict=True) if own == fold),
        modality={**datalist.modality, "source": datalist.modality["target"]},
    )
