# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The temperature network: 1 at the start, bounded always, any size and dtype, no gradient to what it reads."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from torch import nn
from torch.nn import functional

from dacal_med.core.temperature import MetaTemperatureNetwork

SIZES = {1: (9,), 2: (8, 6), 3: (4, 6, 5)}
BOUNDS = [(0.25, 4.0), (0.5, 2.0), (0.9, 1.5), (0.01, 1.001), (0.1, 50.0)]


ALL = ("logits", "image")


def inputs(dims: int, classes: int = 3, channels: int = 1, size=None, dtype=torch.float32, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    size = SIZES[dims] if size is None else size
    logits = 4 * torch.randn(2, classes, *size, generator=g)
    return logits.to(dtype), torch.randn(2, channels, *size, generator=g).to(dtype)


def randomised(network: MetaTemperatureNetwork, spread: float = 0.5) -> MetaTemperatureNetwork:
    """As if trained: no weight is 0."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(spread * torch.randn(p.shape, generator=g))
    return network


def with_output(network: MetaTemperatureNetwork, value: float) -> MetaTemperatureNetwork:
    """A fresh network whose output before the bounds is ``value`` everywhere."""
    with torch.no_grad():
        network.layers[-1].bias.fill_(value)
    return network


@settings(max_examples=25, deadline=None)
@given(
    dims=st.sampled_from([1, 2, 3]),
    classes=st.integers(2, 6),
    channels=st.integers(1, 3),
    hidden=st.integers(1, 9),
    layers=st.integers(2, 5),
    scale=st.floats(0.05, 1.0),
    low=st.floats(0.01, 0.99),
    high=st.floats(1.01, 100.0),
    size=st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_a_fresh_network_gives_exactly_one(dims, classes, channels, hidden, layers, scale, low, high, size):
    network = MetaTemperatureNetwork(classes, channels, dims, hidden, scale, low, high, layers)
    logits, image = inputs(dims, classes, channels, size[:dims])
    assert torch.equal(network(logits, image), torch.ones(2, 1, *size[:dims]))


@settings(max_examples=25, deadline=None)
@given(
    dims=st.sampled_from([1, 2, 3]),
    spread=st.floats(0.1, 1e4),
    scale=st.sampled_from([0.3, 0.5, 1.0]),
    low=st.floats(0.01, 0.99),
    high=st.floats(1.01, 100.0),
    seed=st.integers(0, 99),
)
def test_temperatures_stay_within_the_bounds(dims, spread, scale, low, high, seed):
    network = MetaTemperatureNetwork(3, 1, dims, 4, scale, low, high)
    found = randomised(network, spread)(*inputs(dims, seed=seed))
    assert torch.isfinite(found).all()
    assert float(found.detach().min()) >= low * (1 - 1e-6)
    assert float(found.detach().max()) <= high * (1 + 1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_huge_outputs_reach_the_bounds(dims, low, high, size):
    network = MetaTemperatureNetwork(3, 1, dims, min_temperature=low, max_temperature=high)
    for sign, bound in ((1, high), (-1, low)):
        found = with_output(network, sign * size)(*inputs(dims))
        torch.testing.assert_close(found, torch.full_like(found, bound), rtol=1e-6, atol=0)
        gradients = torch.autograd.grad(found.sum(), list(network.parameters()))
        assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("output", [-3.0, -0.5, -1e-3, 1e-3, 0.5, 3.0])
def test_closed_form_of_the_bounds(dims, low, high, output):
    network = MetaTemperatureNetwork(3, 1, dims, min_temperature=low, max_temperature=high).double()
    found = with_output(network, output)(*inputs(dims, dtype=torch.float64))
    bound = math.log(high if output > 0 else low)
    wanted = math.exp(bound * math.tanh(output / bound))
    torch.testing.assert_close(found, torch.full_like(found, wanted), rtol=1e-12, atol=0)
    assert low <= wanted <= high
    assert (wanted > 1) == (output > 0)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_slope_at_the_start_is_one_to_both_sides(dims, low, high):
    network = MetaTemperatureNetwork(3, 1, dims, min_temperature=low, max_temperature=high).double()
    logits, image = inputs(dims, dtype=torch.float64)
    bias = network.layers[-1].bias
    # Every voxel's log T moves as the output does; interpolation weights sum to 1.
    (gradient,) = torch.autograd.grad(network(logits, image).log().sum(), bias)
    assert gradient.item() == pytest.approx(2 * math.prod(SIZES[dims]), rel=1e-12)
    for step in (1e-7, -1e-7):
        moved = with_output(network, step)(logits, image).log()
        torch.testing.assert_close(moved / step, torch.ones_like(moved), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "size", [(1,), (7,), (1, 1), (5, 7), (1, 9), (8, 3), (1, 1, 1), (5, 7, 3), (1, 6, 9), (9, 2, 1)]
)
@pytest.mark.parametrize("scale", [0.25, 0.5, 0.7, 1.0])
def test_sizes_that_do_not_divide(size, scale):
    network = randomised(MetaTemperatureNetwork(3, 1, len(size), scale=scale))
    logits, image = inputs(len(size), size=size)
    found = network(logits, image)
    assert found.shape == (2, 1, *size)
    assert torch.isfinite(found).all()
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.3, 0.5, 0.7])
def test_computes_at_the_lower_resolution(dims, scale):
    seen = []
    network = MetaTemperatureNetwork(3, 1, dims, scale=scale)
    network.layers[0].register_forward_hook(lambda layer, given, result: seen.append(tuple(result.shape[2:])))
    network(*inputs(dims))
    assert seen == [tuple(math.ceil(n * scale) for n in SIZES[dims])]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_full_resolution_in_closed_form(dims):
    """Three layers written out: log-probabilities and image, two 3-wide convolutions, a 1-wide one, the bound."""
    network = randomised(MetaTemperatureNetwork(3, 2, dims, 5, 1.0, inputs=ALL), 0.2).double()
    logits, image = inputs(dims, channels=2, dtype=torch.float64)
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[dims]
    first, second, last = (m for m in network.layers if not isinstance(m, nn.LeakyReLU))
    x = torch.cat([logits - logits.exp().sum(1, keepdim=True).log(), image], 1)
    for layer in (first, second):
        x = convolve(x, layer.weight, layer.bias, padding=1)
        x = torch.maximum(x, 0.1 * x)
    x = convolve(x, last.weight, last.bias)
    bound = (2 * (x > 0).double() - 1) * math.log(4.0)
    torch.testing.assert_close(network(logits, image), (bound * (x / bound).tanh()).exp(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_half_resolution_averages_and_interpolates(dims):
    """Features are averaged over blocks of 2, the map is interpolated linearly, before the bound."""
    size = (8, 6, 4)[:dims]
    network = randomised(MetaTemperatureNetwork(3, 1, dims, 5, 0.5, inputs=ALL), 0.2).double()
    logits, image = inputs(dims, size=size, dtype=torch.float64)
    features = torch.cat([logits.log_softmax(1), image], 1)
    pooled = {2: functional.avg_pool2d, 3: functional.avg_pool3d}[dims](features, 2)
    output = network.layers(pooled)
    up = nn.Upsample(scale_factor=2, mode={2: "bilinear", 3: "trilinear"}[dims], align_corners=False)(output)
    bound = (2 * (up > 0).double() - 1) * math.log(4.0)
    torch.testing.assert_close(network(logits, image), (bound * (up / bound).tanh()).exp(), rtol=1e-10, atol=0)


@settings(max_examples=25, deadline=None)
@given(dims=st.sampled_from([1, 2, 3]), seed=st.integers(0, 999), shift=st.floats(-20, 20))
def test_depends_on_probabilities_not_on_logits(dims, seed, shift):
    network = randomised(MetaTemperatureNetwork(3, 1, dims)).double()
    logits, image = inputs(dims, dtype=torch.float64, seed=seed)
    wanted = network(logits, image)
    shifts = shift * torch.rand(2, 1, *SIZES[dims], dtype=torch.float64)
    torch.testing.assert_close(network(logits + shifts, image), wanted, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_every_input_matters(dims, scale):
    network = randomised(MetaTemperatureNetwork(3, 1, dims, scale=scale, inputs=ALL), 0.2)
    logits, image = inputs(dims)
    found = network(logits, image)
    assert found.std() > 1e-3
    assert not torch.allclose(network(2 * logits, image), found)
    assert not torch.allclose(network(logits, 2 * image), found)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_confidence_and_entropy_in_closed_form(dims):
    """With full resolution and one layer's worth of weight on the centre, the map is a function of the two inputs."""
    network = MetaTemperatureNetwork(3, 1, dims, 1, 1.0, num_layers=2, inputs=("confidence", "entropy")).double()
    first, last = (m for m in network.layers if not isinstance(m, nn.LeakyReLU))
    centre = (slice(None), slice(None), *[1] * dims)
    logits, image = inputs(dims, dtype=torch.float64)
    p = logits.softmax(1)
    entropy = -(p * p.log()).sum(1, keepdim=True) / math.log(3)
    for channel, wanted in enumerate((p.amax(1, keepdim=True).log(), entropy)):
        with torch.no_grad():
            first.weight.zero_()
            first.weight[centre][0, channel] = 1.0
            first.bias.fill_(100.0)  # far from the kink
            last.weight.fill_(1.0)
            last.bias.fill_(-100.0)
        bound = (2 * (wanted > 0).double() - 1) * math.log(4.0)
        torch.testing.assert_close(
            network(logits, image), (bound * (wanted / bound).tanh()).exp(), rtol=1e-9, atol=1e-12
        )


@settings(max_examples=25, deadline=None)
@given(dims=st.sampled_from([1, 2, 3]), seed=st.integers(0, 999), order=st.permutations(range(4)))
def test_without_logits_it_does_not_tell_classes_apart(dims, seed, order):
    logits, image = inputs(dims, classes=4, dtype=torch.float64, seed=seed)
    blind = randomised(MetaTemperatureNetwork(4, 1, dims, inputs=("confidence", "entropy", "image"))).double()
    torch.testing.assert_close(blind(logits[:, order], image), blind(logits, image), rtol=1e-9, atol=0)


@pytest.mark.parametrize("wrong", [(), ("logits", "logits"), ("margin",)])
def test_unknown_inputs(wrong):
    with pytest.raises(ValueError, match="inputs: found"):
        MetaTemperatureNetwork(3, inputs=wrong)


@pytest.mark.parametrize("layers", [2, 3, 5])
def test_number_of_layers_and_width(layers):
    network = MetaTemperatureNetwork(4, 2, 2, 7, num_layers=layers, inputs=ALL)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    widths = [(m.in_channels, m.out_channels) for m in convolutions]
    assert widths == [(6, 7), *[(7, 7)] * (layers - 2), (7, 1)]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_logits_give_float32(dims, dtype):
    network = randomised(MetaTemperatureNetwork(3, 1, dims), 0.2)
    logits, image = inputs(dims, dtype=dtype)
    found = network(logits, image)
    assert found.dtype == torch.float32
    assert torch.equal(found, network(logits.float(), image.float()))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_float64_logits_give_float64(dims):
    network = randomised(MetaTemperatureNetwork(3, 1, dims), 0.2)
    logits, image = inputs(dims)
    wanted = network(logits, image)
    found = network.double()(logits.double(), image)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_autocast_gives_float32_and_starts_at_one(dims):
    network = MetaTemperatureNetwork(3, 1, dims)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(*inputs(dims))
    assert torch.equal(found, torch.ones(2, 1, *SIZES[dims]))
    randomised(network, 0.2)
    # Anew, since autocast keeps the converted weights of a context.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        later = network(*inputs(dims))
    wanted = network(*inputs(dims))
    assert later.dtype == torch.float32
    torch.testing.assert_close(later, wanted, rtol=0.05, atol=0)
    assert not torch.equal(later, wanted)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_no_gradient_to_logits_and_image(dims):
    network = randomised(MetaTemperatureNetwork(3, 1, dims), 0.2)
    logits, image = (x.requires_grad_(True) for x in inputs(dims))
    network(logits, image).sum().backward()
    assert logits.grad is None
    assert image.grad is None
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_fresh_network_can_learn(dims):
    """The last layer starts at zero and gets a gradient; those before it get theirs once it has moved."""
    network = MetaTemperatureNetwork(3, 1, dims)
    network(*inputs(dims)).sum().backward()
    *others, weight, bias = network.parameters()
    assert weight.grad.abs().max() > 0
    assert bias.grad.abs().max() > 0
    assert not any(p.grad.any() for p in others)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_metatensors_become_plain(dims):
    network = randomised(MetaTemperatureNetwork(3, 1, dims), 0.2)
    logits, image = inputs(dims)
    wanted = network(logits, image)
    found = network(MetaTensor(logits), MetaTensor(image))
    assert type(found) is torch.Tensor
    assert torch.equal(found, wanted)
    found.sum().backward()
    assert all(type(p.grad) is torch.Tensor for p in network.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes: found 1, wanted at least 2"),
        ({"spatial_dims": 0}, "spatial_dims: found 0"),
        ({"spatial_dims": 4}, "spatial_dims: found 4"),
        ({"in_channels": 0}, "found in_channels=0"),
        ({"hidden_channels": 0}, "hidden_channels=0"),
        ({"num_layers": 1}, "num_layers=1"),
        ({"scale": 0.0}, "scale=0.0"),
        ({"scale": 1.5}, "scale=1.5"),
        ({"scale": math.nan}, "scale=nan"),
        ({"min_temperature": 0.0}, "min_temperature=0.0"),
        ({"min_temperature": 1.0}, "min_temperature=1.0"),
        ({"max_temperature": 1.0}, "max_temperature=1.0"),
        ({"max_temperature": math.nan}, "max_temperature=nan"),
        ({"min_temperature": 2.0, "max_temperature": 0.5}, "wanted 0 < min < 1 < max"),
    ],
)
def test_wrong_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        MetaTemperatureNetwork(**{"num_classes": 3, **options})


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_wrong_channels_are_refused(dims):
    network = MetaTemperatureNetwork(3, 1, dims)
    for classes, channels in ((2, 1), (4, 1), (3, 2)):
        with pytest.raises(ValueError, match=f"found {classes} logit and {channels} image channels, wanted 3 and 1"):
            network(*inputs(dims, classes, channels))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_logits_may_be_finer_than_the_network(dims):
    network = randomised(MetaTemperatureNetwork(3, 1, dims))
    logits, image = inputs(dims, dtype=torch.float64)
    found = network(logits, image)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.float(), network(logits.float(), image.float()), rtol=1e-5, atol=1e-5)
