# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Methods by name: what each changes in a configuration, and what is refused."""

from __future__ import annotations

import pytest

from dacal_med.comparison.methods import CALIBRATORS, DEFAULTS, HOST, find_method, find_methods, fit_to_host
from dacal_med.io.errors import InputError


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


@pytest.mark.parametrize(
    "host",
    [
        {"name": "dacs", "complement": "same"},
        {"name": "mic"},
        {"name": "mic", "base": {"name": "dacs"}},
        {"name": "mic", "base": {"name": "daformer", "base": "dacs"}},
        {"_target_": "my.own.Host"},
        "@elsewhere",
    ],
)
def test_hosts_that_mix_take_the_methods_as_they_are(host):
    methods = find_methods(["hard", "soft_both", "source_only"])
    assert fit_to_host(methods, host) == methods


@pytest.mark.parametrize(
    "host",
    [
        {"name": "mean_teacher"},
        {"name": "mic", "base": "mean_teacher"},
        {"name": "mic", "base": {"_target_": HOST, "name": "mean_teacher"}},
    ],
)
def test_hosts_that_do_not_mix_have_no_complement_to_leave_out(host):
    hard, fixed, dacal = fit_to_host(find_methods(["hard", "fixed_2", "dacal"]), host)
    assert hard.overrides == {"labeller#name": "hard"}
    assert fixed.overrides == {"labeller#name": "fixed", "labeller#fixed_temperature": 2.0}
    assert dacal.overrides == {}
    with pytest.raises(InputError, match=r"'soft_both' needs a host with a complementary mix, found .*mean_teacher"):
        fit_to_host(find_methods(["hard", "soft_both"]), host)
