# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The networks of dacal_med at a site: the same weights and logits, without what only training reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dacal_med.deploy.export.convert import _program
from dacal_med.deploy.export.deployed import build_network
from dacal_med.deploy.export.packages import packages_of
from dacal_med.deploy.export.site_network import at_a_site
from dacal_med.deploy.runtime.networks import MultiResolution
from dacal_med.engines import HRDA
from dacal_med.networks import segmentation_network
from tests.bundles.builders import TINY_MIT

TINY = {"name": "daformer", "encoder": "mit_b0", "encoder_options": TINY_MIT, "head_options": {"channels": 8}}
STREETS = {"_target_": "dacal_med.networks.segmentation_network", **TINY, "num_classes": 5, "weights": None}
FUSED = {"network": STREETS, "num_classes": 5, "in_channels": 3, "spatial_dims": 2, "detail_weight": 0.2}


@pytest.mark.parametrize("target", ["dacal_med.engines.HRDA", "dacal_med.engines.hrda.HRDA"])
def test_what_trains_goes_under_the_sites_name(target):
    found = at_a_site({"_target_": target, **FUSED})
    assert found == {
        "_target_": "dacal_site.networks.MultiResolution",
        "network": {"_target_": "dacal_site.networks.segmentation_network", **TINY, "num_classes": 5},
        **{key: FUSED[key] for key in ("num_classes", "in_channels", "spatial_dims")},
    }
    assert at_a_site(found) == found


@pytest.mark.parametrize("definition", ["$torch.nn.Identity()", {"_target_": "UNet", "channels": [4, "@n"]}])
def test_all_else_stays(definition):
    assert at_a_site(definition) == definition


def test_weights_and_logits_are_those_of_the_trained_network():
    torch.manual_seed(0)
    trained = HRDA(segmentation_network(**TINY, num_classes=5), 5, 3, 2).eval()
    nn.init.normal_(trained.attention.layers[-1].weight)
    config = {"network_def": at_a_site({"_target_": "dacal_med.engines.HRDA", **FUSED})}
    site = build_network(config, Path("inference.json")).eval()
    assert type(site) is MultiResolution
    site.load_state_dict(trained.state_dict())
    image = torch.rand(1, 3, 64, 96)
    assert torch.equal(site(image), trained(image))


def test_packages_are_those_of_the_layers():
    streets = packages_of(segmentation_network(**TINY))
    assert {"monai", "torch", "transformers"} <= set(streets)
    assert "dacal-med" not in streets
    assert packages_of(nn.Linear(1, 1)) == ("torch",)


@pytest.mark.parametrize(("dims", "scale", "overlap", "windows"), [(2, 2, 0.5, 3), (3, 3, 0.0, 3), (2, 3, 0.4, 5)])
def test_windows_are_as_many_for_every_size(dims, scale, overlap, windows):
    """A detail that is the image, wherever windows lie, and nothing of the context."""
    fused = MultiResolution(nn.Identity(), 1, 1, dims, scale, overlap=overlap, window_batch_size=100).double()
    fused.attention.forward = lambda logits, image: torch.ones_like(logits)  # type: ignore[method-assign]
    seen = []
    fused.network.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    for side in (scale, 4 * scale, 7 * scale):
        image = torch.rand(1, 1, *[side] * (dims - 1), 2 * scale, dtype=torch.float64)
        torch.testing.assert_close(fused(image), image)
    assert seen == [1, windows**dims] * 3


def test_a_trace_and_a_graph_serve_other_sizes():
    torch.manual_seed(0)
    network = MultiResolution(nn.Conv2d(3, 4, 3, padding=1), 4, 3, 2).eval()
    nn.init.normal_(network.attention.layers[-1].weight)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    example = torch.zeros(2, 3, 32, 32)
    traced, program = torch.jit.trace(network, example), _program(network, example).module()
    for shape in ((1, 3, 32, 32), (3, 3, 24, 50)):
        image = torch.rand(shape)
        for converted in (traced, program):
            torch.testing.assert_close(converted(image), network(image))
