# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The folds of an oracle become one result over the cases, in the order of the data."""

from __future__ import annotations

import json

import torch

from dacal_med.comparison.compare import merge_folds
from dacal_med.handlers.sums import load_sums, save_sums
from tests.comparison.builders import CLASSES, scores, sums


def test_folds_of_whole_patients_are_put_together_in_the_order_of_the_cases(tmp_path):
    cases = sums(2.0, cases=5)
    groups = ["fog", "night", None, "night", "fog"]
    fold_of = [1, 0, 1, 1, 0]
    for fold in range(2):
        own = [index for index, other in enumerate(fold_of) if other == fold]
        save_sums(
            tmp_path / f"fold_{fold}" / "statistics.pt",
            [cases[index] for index in own],
            CLASSES,
            [groups[index] for index in own],
        )
        content = {"after": {}, "seconds": 10.0 * (fold + 1), "peak_memory_mib": 100.0 * (fold + 1)}
        (tmp_path / f"fold_{fold}" / "metrics.json").write_text(json.dumps(content))
    merge_folds(tmp_path, fold_of)
    merged = load_sums(tmp_path / "statistics.pt")
    assert list(merged.groups) == groups
    for found, wanted in zip(merged.cases, cases, strict=True):
        torch.testing.assert_close(found.state_dict(), wanted.state_dict(), rtol=0, atol=0)
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["seconds"] == 30.0 and result["peak_memory_mib"] == 200.0
    assert result["after"]["dice"] == scores(cases)["dice"]
    assert result["after"]["per_group"]["night"]["cases"] == 2
