# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Methods by name: what each changes in a configuration, and what is refused."""

from __future__ import annotations

import pytest

from dacal_med.comparison.methods import CALIBRATORS, DEFAULTS, find_method, find_methods
from dacal_med.errors import InputError


def test_trained_methods_change_labeller_and_host_alone():
    for name in ("hard", "soft", "fixed_2", "hard_both", "soft_both", "fixed_both_0.5"):
        assert {key.split("#")[0] for key in find_method(name).overrides} <= {"labeller", "host"}
    assert find_method("hard").overrides == {"labeller#name": "hard", "host#complement": "none"}
    assert find_method("soft_both").overrides == {"labeller#name": "soft", "host#complement": "same"}
    assert find_method("dacal").overrides == {}


def test_a_fixed_temperature_is_part_of_the_name():
    method = find_method("fixed_1.5")
    assert method.overrides["labeller#fixed_temperature"] == 1.5
    assert method.overrides["host#complement"] == "none"
    assert method.title == "soft labels, T = 1.5"
    both = find_method("fixed_both_0.5")
    assert both.overrides["labeller#fixed_temperature"] == 0.5
    assert both.overrides["host#complement"] == "same"


def test_calibrators_sit_on_a_trained_method():
    method = find_method("fixed_2+lts")
    assert (method.base, method.calibrator, method.oracle) == ("fixed_2", "lts", False)
    assert method.overrides == find_method("fixed_2").overrides
    assert method.title.startswith(find_method("fixed_2").title + " + ")
    assert find_method("hard+ts_oracle").oracle
    assert find_method("target_oracle").oracle


def test_bases_are_added_before_their_calibrators_and_repetitions_dropped():
    names = [m.name for m in find_methods(["hard+ts", "soft", "hard+vs", "soft", "hard"])]
    assert names == ["hard", "hard+ts", "soft", "hard+vs"]


def test_what_is_compared_by_default_exists_and_has_every_kind():
    methods = find_methods(DEFAULTS)
    assert {m.calibrator for m in methods if m.base == "dacal"} == set(CALIBRATORS)
    assert {"source_only", "hard", "soft", "hard_both", "soft_both", "dacal", "target_oracle"} < {
        m.name for m in methods
    }
    assert sum(m.name.startswith("fixed_") for m in methods) >= 2


@pytest.mark.parametrize(
    "name", ["harder", "fixed_", "fixed_-1", "fixed_nan", "fixed_inf", "hard+platt", "target_oracle+ts", "+ts", ""]
)
def test_unknown_methods_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=r"--methods: found .*known are source_only, hard"):
        find_methods([name])
    with pytest.raises(InputError, match="found none"):
        find_methods([])
