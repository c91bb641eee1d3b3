# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Hosts by name, on other hosts, and from a configuration."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from dacal_med.core.mixing import BoxMask, NoMask
from dacal_med.engines.hosts import DACS, HOSTS, Host, LossTerm, MaskedConsistency, MeanTeacher, SourceOnly, make_host
from dacal_med.io.errors import InputError


@pytest.mark.parametrize("name", sorted(set(HOSTS) - {"daformer"}))
def test_every_host_has_a_name_and_defaults(name):
    host = make_host(name)
    assert isinstance(host, Host)
    assert type(host) is HOSTS[name]


def test_the_host_below_is_given_in_any_form():
    expected = MaskedConsistency(base=DACS(complement="same"))
    assert make_host("mic", base=DACS(complement="same")) == expected
    assert make_host("mic", base={"name": "dacs", "complement": "same"}) == expected
    assert make_host("mic", base="mean_teacher") == MaskedConsistency(base=MeanTeacher())
    assert make_host("mic") == MaskedConsistency(base=DACS())
    assert make_host("mic", base="mean_teacher").mask_generator == NoMask()


@pytest.mark.parametrize("base", [None, "dacs", {"name": "dacs", "complement": "hard"}, DACS(complement="hard")])
def test_options_that_a_host_does_not_have_go_to_the_one_below(base):
    """So that ``host#complement`` in a configuration means the same on every host that mixes."""
    found = make_host("mic", base=base, complement="same", mask_ratio=0.5)
    assert found == MaskedConsistency(base=DACS(complement="same"), mask_ratio=0.5)
    deep = make_host("mic", base=MaskedConsistency(base=DACS()), complement="same")
    assert deep.base.base.complement == "same"
    assert make_host("mic", base={"name": "mic", "block_share": 0.5}, complement="same").base.base.complement == "same"


def test_a_host_of_ones_own_can_be_below():
    class Own:
        uses_target = True
        mask_generator = NoMask()

        def terms(self, batch, mask, pseudo, hard):
            return [LossTerm("source", batch.source, truth=True)]

    assert isinstance(make_host("mic", base=Own()).base, Own)
    with pytest.raises(InputError, match=r"host 'Own' .*found \['complement'\]"):
        make_host("mic", base=Own(), complement="same")


def test_configurations_nest_hosts():
    target = "dacal_med.engines.make_host"
    box = {"_target_": "dacal_med.core.mixing.BoxMask"}
    config = {
        "by_name": {"_target_": target, "name": "mic", "base": {"name": "dacs", "mask_generator": box}},
        "nested": {
            "_target_": target,
            "name": "mic",
            "base": {"_target_": target, "name": "dacs"},
            "complement": "hard",
        },
        "classes": {"_target_": "dacal_med.engines.MaskedConsistency", "base": {"_target_": "dacal_med.engines.DACS"}},
        "flat": {"_target_": target, "name": "dacs", "complement": "same", "mask_generator": box},
    }
    parser = ConfigParser(config)
    parser["flat#name"] = "mic"
    assert parser.get_parsed_content("by_name") == MaskedConsistency(base=DACS(BoxMask()))
    assert parser.get_parsed_content("nested") == MaskedConsistency(base=DACS(complement="hard"))
    assert parser.get_parsed_content("classes") == MaskedConsistency()
    assert parser.get_parsed_content("flat") == MaskedConsistency(base=DACS(BoxMask(), complement="same"))


def test_unknown_names_and_options_are_refused():
    with pytest.raises(
        InputError, match=r"host: found 'dcas', wanted one of \['dacs', 'daformer', 'mean_teacher', 'mic'"
    ):
        make_host("dcas")
    with pytest.raises(InputError, match=r"host 'dacs' .*found \['complemnt'\], wanted any of \[.*'complement'"):
        make_host("dacs", complemnt="hard")
    with pytest.raises(InputError, match=r"host 'dacs' .*found \['complemnt'\]"):
        make_host("mic", complemnt="hard")
    with pytest.raises(InputError, match=r"host 'dacs' .*found \['complemnt'\]"):
        make_host("mic", base=DACS(), complemnt="hard")
    with pytest.raises(InputError, match=r"host 'mean_teacher' .*found \['complement'\]"):
        make_host("mic", base="mean_teacher", complement="same")
    with pytest.raises(InputError, match="host#base: found one, but 'dacs' stands on no other host"):
        make_host("dacs", base="mean_teacher")
    with pytest.raises(InputError, match=r"host#base: found keys \['complement'\], wanted 'name'"):
        make_host("mic", base={"complement": "same"})
    with pytest.raises(InputError, match="host#base: found int, wanted a host"):
        make_host("mic", base=3)
    with pytest.raises(InputError, match=r"host 'daformer' does not take these options: .*frozen"):
        make_host("daformer")
    assert isinstance(make_host("source_only"), SourceOnly)
