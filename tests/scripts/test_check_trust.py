# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The check of trust numbers: its errors and coverages against numbers computed by hand."""

from __future__ import annotations

import json

import pytest
import torch

from dacal_med.deploy.runtime.trust import TrustAccumulator
from dacal_med.deploy.runtime.trust_effects import fit_spread
from dacal_med.io.errors import InputError
from scripts import check_trust
from tests.deploy.export.builders_trust import TRAIN, data_set, weights


def case(confidence: float, hit: int, true: int, voxels: int = 100) -> object:
    """``voxels`` predicted with a confidence, as many others surely background."""
    p = torch.cat([torch.full((voxels,), confidence), torch.zeros(voxels)])
    trust = TrustAccumulator(["background", "cube"], 1.0)
    trust.update(torch.stack([1 - p, p]))
    return check_trust.Case(trust, 1, hit, true)


def test_true_and_expected_numbers_of_a_case():
    found = case(0.8, hit=60, true=70)
    assert found.true_dice() == pytest.approx(2 * 60 / 170)
    assert found.expected() == pytest.approx(2 * 80 / 180, abs=1e-3)
    assert found.expected_voxels() == pytest.approx(80)
    # Odds of 4 divided by 4.
    shift = (-1.3862944, 0.0)
    assert found.expected(shift) == pytest.approx(2 * 50 / 150, abs=1e-4)
    assert found.expected_voxels(shift) == pytest.approx(50, abs=1e-3)


def test_the_summary_of_a_class():
    cases = [case(0.8, 80, 80), case(0.8, 60, 60), case(0.9, 90, 90)]
    source = [case(0.8, 70, 70), case(0.8, 90, 90)]
    shifts = [[(-0.5, 0.0)], [(0.5, 0.0)]]
    found = check_trust.summarise(cases, shifts, source)
    errors = [cases[k].expected() - cases[k].true_dice() for k in range(3)]
    assert found["estimates"]["expected"]["bias"] == pytest.approx(sum(errors) / 3)
    assert found["estimates"]["expected"]["mae"] == pytest.approx(sum(map(abs, errors)) / 3)
    # The shifts of the held-out cases cancel.
    assert found["estimates"]["corrected"]["mae"] == pytest.approx(found["estimates"]["expected"]["mae"], abs=2e-3)
    assert found["estimates"]["source mean"]["pearson"] is None
    assert found["volumes"]["predicted"]["bias"] == pytest.approx((300 - 230) / 230)
    covered = found["intervals"]
    assert covered["independent"]["dice"] == pytest.approx(2 / 3)  # the second case is 20 voxels off
    assert covered["assumed"]["dice"] == 1.0
    assert covered["cases"]["dice_width"] == pytest.approx(sum(c.covered(fit_spread(shifts))[2] for c in cases) / 3)
    assert set(found["source_left_out"]) == {"dice", "volume", "dice_width", "volume_width"}


def test_it_runs_on_a_data_set_and_prints_its_tables(tmp_path, capsys):
    words = ["--config_file", str(TRAIN), "--dataset_dir", str(data_set(tmp_path / "data")), "--seed", "3"]
    words += ["--model", f"untrained={weights(tmp_path / 'model.pt')}", "--json", str(tmp_path / "out.json")]
    assert check_trust.main([*words, "--roi_size", "[16,16,16]", "--held_out_share", "0.5"]) == 0
    result = json.loads((tmp_path / "out.json").read_text())["untrained"]
    assert result["classes"]["cube"]["cases"] == 2
    assert set(result["alarms"]) >= {"target_val", "inverted"}
    printed = capsys.readouterr().out
    assert printed.count("| untrained | cube |") == 3 + 3 + 4
    assert "| untrained | inverted |" in printed


def test_words_that_are_no_overrides_are_refused():
    with pytest.raises(InputError, match="wanted --key value"):
        check_trust.main(["--config_file", "a", "--dataset_dir", "b", "--model", "c=d", "--seed", "0", "stray"])
