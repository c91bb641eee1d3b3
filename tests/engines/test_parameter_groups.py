# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Groups of parameters under the optimizer, the schedule and the bi-level step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dacal_med.core.bilevel import BilevelStep
from dacal_med.engines import parameter_groups, warmup_polynomial
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA


class Small(nn.Module):
    """An encoder with normalisation and a head with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))

    def forward(self, image):
        return self.head(self.encoder(image))


def by_name(network, groups):
    names = {id(p): name for name, p in network.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def test_the_head_learns_faster_and_norms_of_the_encoder_do_not_decay():
    network = Small()
    groups = parameter_groups(network, 6e-5)
    assert by_name(network, groups) == {
        "encoder": {"encoder.0.weight", "encoder.0.bias"},
        "encoder_norm": {"encoder.1.weight", "encoder.1.bias"},
        "head": {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"},
    }
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    found = {g["name"]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {"encoder": (6e-5, 0.01), "encoder_norm": (6e-5, 0.0), "head": (pytest.approx(6e-4), 0.01)}


def test_inside_hrda_its_attention_belongs_to_the_head():
    network = HRDA(Small(), 2, 1, 2)
    names = by_name(network, parameter_groups(network, 1.0, decay_normalisation=True))
    assert set(names) == {"encoder", "head"}
    assert {name.split(".")[0] for name in names["head"]} == {"attention", "network"}
    assert all("encoder" in name for name in names["encoder"])


def test_the_schedule_scales_every_group_alike():
    optimizer = torch.optim.AdamW(parameter_groups(Small(), 6e-5))
    schedule = warmup_polynomial(optimizer, total_iters=10, warmup_iters=4)
    for step in range(1, 10):
        optimizer.step()
        schedule.step()
        factor = (1e-6 + (1 - 1e-6) * min(step / 4, 1)) * (1 - step / 10)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([6e-5 * factor, 6e-5 * factor, 6e-4 * factor], rel=1e-9)


def test_the_look_ahead_takes_each_parameter_s_own_rate():
    network = Small()
    step = BilevelStep(network, torch.optim.SGD(parameter_groups(network, 0.1), lr=1.0))
    rates = dict(zip(step.parameters, step._rates(), strict=True))
    assert rates["encoder.0.weight"] == rates["encoder.1.bias"] == 0.1
    assert rates["head.1.weight"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": ["decoder"]}, r"none of \['decoder'\], it has \['encoder', 'head'\]"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"head_factor": -1.0}, "head_factor=-1.0"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(InputError, match=message):
        parameter_groups(Small(), **{"learning_rate": 0.1, **options})
