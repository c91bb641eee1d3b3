# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The table of trust numbers over seeds: means and spreads by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dacal_med.io.errors import InputError
from scripts.summarise_trust import COLUMNS, OTHERS, alarms, main, table


def result(error: float, pearson: float | None = 0.5) -> dict[str, Any]:
    """One class whose every number is ``error``, but for a correlation."""
    estimate = {"mae": error, "bias": -error, "pearson": pearson, "spearman": pearson}
    interval = {"dice": error, "volume": error, "dice_width": error, "volume_width": error}
    return {
        "true_dice": [error, error + 0.2],
        "estimates": dict.fromkeys(("expected", "corrected", "source mean"), estimate),
        "volumes": {key: {"mae": error, "bias": error} for key in ("expected", "corrected", "predicted")},
        "intervals": dict.fromkeys(("independent", "assumed", "cases"), interval),
        "source_left_out": None,
    }


def seed(*errors: float, **options: Any) -> dict[str, Any]:
    classes = {f"class {k}": result(error, **options) for k, error in enumerate(errors)}
    rates = {"either": errors[0], "intensity": 0.0, "confidence": 0.0}
    return {"hard": {"classes": classes, "alarms": {"target_val": rates}}}


def test_classes_are_averaged_within_a_seed_and_seeds_have_a_spread():
    rows = table({"a": [seed(0.1, 0.3), seed(0.4)]}, COLUMNS).splitlines()
    cells = [cell.strip() for cell in rows[2].strip("|").split("|")]
    # Seeds 0.2 and 0.4: mean 0.3, standard deviation 0.1 * sqrt(2).
    assert cells[:5] == ["a", "hard", "0.400 ± 0.141", "0.300 ± 0.141", "-0.300 ± 0.141"]
    assert cells[5] == "0.50 ± 0.00"


def test_one_seed_has_no_spread_and_what_is_unknown_none():
    rows = table({"a": [seed(0.25, pearson=None)]}, {**COLUMNS, **OTHERS}).splitlines()
    found = dict(zip((h.strip() for h in rows[0].split("|")), (c.strip() for c in rows[2].split("|")), strict=True))
    assert (found["error of expected Dice"], found["Pearson"]) == ("0.250", "-")
    assert (found["inside: source left out"], found["error: source mean"]) == ("-", "0.250")


def test_alarms_are_of_the_model():
    assert alarms({"a": [seed(0.1, 0.9), seed(0.3)]}).splitlines()[2] == "| a | hard | 0.20 ± 0.14 |"


def test_files_are_read_and_told(tmp_path, capsys):
    (tmp_path / "0.json").write_text(json.dumps(seed(0.5)))
    assert main([f"a={tmp_path / '0.json'},{tmp_path / '0.json'}", "--estimates"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| a | hard |") == 3
    assert "0.500 ± 0.000" in printed
    with pytest.raises(InputError, match=r"a=.*: cannot be read"):
        main([f"a={tmp_path / 'nowhere.json'}"])
    with pytest.raises(InputError, match="seeds of different models"):
        table({"a": [seed(0.1), {"other": seed(0.1)["hard"]}]}, COLUMNS)
