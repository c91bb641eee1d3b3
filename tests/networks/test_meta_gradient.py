# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The meta-gradient through attention, batch norm, dropout and stochastic depth, against double backward."""

from __future__ import annotations

import pytest
import torch

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.bilevel import BilevelStep
from dacal_med.core.differentiation import NoForwardModeError
from dacal_med.engines import parameter_groups
from dacal_med.networks import HRDA
from tests.networks.builders import CLASSES, PAIRS, tiny


def problem(network, size=(32, 64), method="forward", optimizer=torch.optim.AdamW, **options):
    """Return the meta-gradient of temperatures on small random data; the head learns ten times faster."""
    network.double().train()
    generator = torch.Generator().manual_seed(3)

    def rand(channels):
        return torch.rand(2, channels, *size, generator=generator).double()

    with torch.no_grad():
        for p in network.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator).double()
    image, outer_image, weights = rand(3), rand(3), rand(1)
    logits, outer_targets = 4 * rand(CLASSES), (4 * rand(CLASSES)).softmax(1)
    leaf = (0.2 * rand(1)).requires_grad_(True)
    step = BilevelStep(network, optimizer(parameter_groups(network, 1e-3)), method=method, **options)
    torch.manual_seed(5)
    inner = LabelledBatch(image, (logits / leaf.exp()).softmax(1), weights)
    ones = torch.ones_like(weights)
    result = step(inner, lambda forward: soft_cross_entropy(forward(outer_image), outer_targets, ones), [leaf])
    assert torch.isfinite(result.gradients[0]).all() and float(result.norm) > 0
    return result


def error(found, wanted):
    return float((found.gradients[0] - wanted.gradients[0]).norm() / wanted.gradients[0].norm())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(("name", "backbone"), PAIRS)
def test_equals_double_backward_in_float64(name, backbone, optimizer):
    results = []
    for method in ("forward", "double_backward"):
        torch.manual_seed(1)
        network = tiny(name, backbone)
        buffers = {key: value.double().clone() for key, value in network.named_buffers()}
        results.append(problem(network, method=method, optimizer=optimizer))
        if method == "forward":
            assert all(torch.equal(value, buffers[key]) for key, value in network.named_buffers())
    assert results[0].method == "forward"
    assert error(*results) < 1e-10


@pytest.mark.parametrize("name", ["daformer", "segformer"])
def test_equals_double_backward_inside_hrda(name):
    results = []
    for method in ("forward", "double_backward"):
        torch.manual_seed(1)
        results.append(problem(HRDA(tiny(name), CLASSES, 3, 2), size=(64, 128), method=method))
    assert error(*results) < 1e-10


def test_fused_attention_falls_back_to_differences():
    """On the CPU its flash kernel has no forward mode; the automatic choice says so once and goes on."""
    torch.manual_seed(1)
    wanted = problem(tiny("segformer"), method="double_backward")
    torch.manual_seed(1)
    with pytest.raises(NoForwardModeError):
        problem(tiny("segformer", attention="sdpa"), method="forward")
    torch.manual_seed(1)
    with pytest.warns(UserWarning, match="uses finite differences from here on"):
        found = problem(tiny("segformer", attention="sdpa"), method="auto")
    assert found.method == "difference"
    # The head's ReLU bends between the two points of the difference.
    assert error(found, wanted) < 1e-3
