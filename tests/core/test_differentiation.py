# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Derivatives along a direction against linear networks and torch.func, preconditioners against real steps."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.networks.nets import DynUNet
from torch import nn
from torch.func import functional_call, jvp

from dacal_med.core.differentiation import (
    NoForwardModeError,
    call,
    finite_difference,
    forward_mode,
    group_of,
    preconditioner,
    preserved_random_state,
    random_state,
    set_random_state,
)
from tests.core.builders import Square

CLASSES = 3
SIZES = {2: (5, 6), 3: (3, 4, 5)}
CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CPU = torch.device("cpu")
DERIVATIVES = {"forward": forward_mode, "difference": lambda *args: finite_difference(*args, 1e-4)}


def smooth(dims: int, *between: nn.Module) -> nn.Sequential:
    """A network without kinks, in float64."""
    convolution = CONVOLUTIONS[dims]
    layers = [convolution(1, 4, 3, padding=1), nn.Softplus(), *between, convolution(4, CLASSES, 1)]
    return nn.Sequential(*layers).double()


def image_of(dims: int) -> torch.Tensor:
    return torch.randn(2, 1, *SIZES[dims], dtype=torch.float64)


def direction_of(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(p) for name, p in network.named_parameters()}


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def replaced(network: nn.Module, parameters: dict[str, torch.Tensor]) -> nn.Module:
    """A copy with other parameters."""
    result = copy.deepcopy(network)
    result.load_state_dict(parameters, strict=False)
    return result


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# Calls at other parameters


@pytest.mark.parametrize("dims", [2, 3])
def test_call_gives_the_logits_at_other_parameters(dims):
    network, image = smooth(dims, BATCH_NORMS[dims](4)), image_of(dims)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    new = direction_of(network)
    found = call(network, new, image)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    torch.testing.assert_close(found, replaced(network, new)(image), rtol=1e-12, atol=1e-13)
    assert not torch.allclose(found, call(network, {}, image))
    some = {name: value for name, value in new.items() if name.startswith("3")}
    torch.testing.assert_close(call(network, some, image), replaced(network, some)(image), rtol=1e-12, atol=1e-13)
    assert torch.equal(call(network, {}, image), copy.deepcopy(network)(image))


@pytest.mark.parametrize("dims", [2, 3])
def test_call_is_right_for_modules_registered_twice(dims):
    network = (
        DynUNet(dims, 1, CLASSES, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], norm_name="batch").double().train()
    )
    assert len(list(network.named_parameters())) < len(list(network.named_parameters(remove_duplicate=False)))
    image = torch.randn(2, 1, *[8] * dims, dtype=torch.float64)
    new = direction_of(network)
    wanted = copy.deepcopy(network)
    with torch.no_grad():
        for name, p in wanted.named_parameters():
            p.copy_(new[name])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.testing.assert_close(call(network, new, image), wanted(image), rtol=1e-12, atol=1e-12)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dims", [2, 3])
def test_call_is_right_for_tied_parameters(dims):
    """One parameter in two layers is one parameter."""
    network = nn.Sequential(*[CONVOLUTIONS[dims](1, 1, 3, padding=1) for _ in range(2)], CONVOLUTIONS[dims](1, 3, 1))
    network[1].weight = network[0].weight
    network, image = network.double(), image_of(dims)
    new = direction_of(network)
    assert "1.weight" not in new
    wanted = copy.deepcopy(network)
    with torch.no_grad():
        for name, p in wanted.named_parameters():
            p.copy_(new[name])
    assert wanted[1].weight is wanted[0].weight
    torch.testing.assert_close(call(network, new, image), wanted(image), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [2, 3])
def test_call_takes_metatensors_and_gives_plain_ones(dims):
    network, image = smooth(dims), image_of(dims)
    found = call(network, {}, MetaTensor(image))
    assert type(found) is torch.Tensor
    assert torch.equal(found, network(image))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_call_gives_at_least_float32(dtype, wanted):
    network = smooth(2).to(dtype)
    assert call(network, {}, image_of(2).to(dtype)).dtype == wanted


@pytest.mark.parametrize(("result", "name"), [(lambda x: (x, x), "tuple"), (lambda x: {"out": x}, "dict")])
def test_networks_that_return_something_else_are_refused(result, name):
    with pytest.raises(TypeError, match=f"the network returned {name}, wanted one tensor of logits"):
        call(nn.Sequential(nn.Conv2d(1, 3, 1), Apply(result)), {}, torch.zeros(1, 1, 2, 2))


# Directional derivatives


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 9999),
    dims=st.sampled_from([2, 3]),
    classes=st.integers(2, 5),
    name=st.sampled_from(sorted(DERIVATIVES)),
)
def test_derivative_of_a_linear_network_in_closed_form(seed, dims, classes, name):
    """With ``z = W x + b``: the derivative along ``(V, c)`` is ``d - sum_k p_k d_k`` with ``d = V x + c``."""
    torch.manual_seed(seed)
    network = CONVOLUTIONS[dims](2, classes, 1).double()
    image = torch.randn(2, 2, *SIZES[dims], dtype=torch.float64)
    direction = direction_of(network)

    def linear(weight, bias):
        return torch.einsum("kc,bc...->bk...", weight.flatten(1), image) + bias.view(-1, *[1] * dims)

    change = linear(direction["weight"], direction["bias"])
    p = linear(network.weight.detach(), network.bias.detach()).softmax(1)
    wanted = change - (p * change).sum(1, keepdim=True)
    found = DERIVATIVES[name](network, dict(network.named_parameters()), direction, image)
    rtol, atol = (1e-12, 1e-13) if name == "forward" else (1e-6, 1e-7)
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=atol)
    assert not found.requires_grad


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "tolerance"), [("forward", 1e-12), ("difference", 1e-6)])
def test_derivative_equals_torch_func(name, tolerance, dims):
    network, image = smooth(dims, CONVOLUTIONS[dims](4, 4, 3, padding=1), nn.Tanh()), image_of(dims)
    parameters, direction = dict(network.named_parameters()), direction_of(network)

    def log_probabilities(values):
        return functional_call(network, values, (image,)).log_softmax(1)

    _, wanted = jvp(log_probabilities, (parameters,), (direction,))
    found = DERIVATIVES[name](network, parameters, direction, image)
    assert relative_error(found, wanted) <= tolerance
    assert type(DERIVATIVES[name](network, parameters, direction, MetaTensor(image))) is torch.Tensor


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "tolerance"), [("forward", 1e-12), ("difference", 1e-6)])
def test_derivative_along_some_parameters(name, tolerance, dims):
    network, image = smooth(dims), image_of(dims)
    direction = direction_of(network)
    chosen = {n: p for n, p in network.named_parameters() if n.startswith("2")}
    found = DERIVATIVES[name](network, chosen, {n: direction[n] for n in chosen}, image)
    assert not found.requires_grad
    padded = {n: v if n in chosen else torch.zeros_like(v) for n, v in direction.items()}
    wanted = forward_mode(network, dict(network.named_parameters()), padded, image)
    assert relative_error(found, wanted) <= tolerance
    whole = forward_mode(network, dict(network.named_parameters()), direction, image)
    assert relative_error(found, whole) > 0.1


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("name", "tolerance"), [("forward", 1e-12), ("difference", 1e-6)])
def test_batch_norm_is_differentiated_and_its_statistics_stay(name, tolerance, dims):
    network, image = smooth(dims, BATCH_NORMS[dims](4)).train(), image_of(dims)
    # Without running statistics, torch.func can differentiate batch norm too.
    reference = smooth(dims, BATCH_NORMS[dims](4, track_running_stats=False)).train()
    reference.load_state_dict(dict(network.named_parameters()))
    parameters, direction = dict(network.named_parameters()), direction_of(network)

    def log_probabilities(values):
        return functional_call(reference, values, (image,)).log_softmax(1)

    _, wanted = jvp(log_probabilities, (dict(reference.named_parameters()),), (direction,))
    before = {n: value.clone() for n, value in network.state_dict().items()}
    found = DERIVATIVES[name](network, parameters, direction, image)
    assert relative_error(found, wanted) <= tolerance
    assert set(before) > set(parameters)
    for n, value in network.state_dict().items():
        assert torch.equal(value, before[n]), n
    assert network.training
    for p in network.parameters():
        assert p.grad is None
        assert p.requires_grad


@pytest.mark.parametrize("dims", [2, 3])
def test_dropout_draws_what_one_forward_pass_draws(dims):
    network, image = smooth(dims, nn.Dropout(0.5)).train(), image_of(dims)
    parameters, direction = dict(network.named_parameters()), direction_of(network)
    torch.manual_seed(5)
    kept = network[2](torch.ones(2, 4, *SIZES[dims], dtype=torch.float64)) / 2
    after = torch.get_rng_state()
    found = {}
    for name, derivative in DERIVATIVES.items():
        torch.manual_seed(5)
        found[name] = derivative(network, parameters, direction, image)
        assert torch.equal(torch.get_rng_state(), after), name

    def log_probabilities(values):
        first, last = ({k[2:]: v for k, v in values.items() if k[0] == layer} for layer in "03")
        hidden = nn.functional.softplus(functional_call(network[0], first, (image,)))
        return functional_call(network[3], last, (2 * kept * hidden,)).log_softmax(1)

    _, wanted = jvp(log_probabilities, (parameters,), (direction,))
    torch.testing.assert_close(found["forward"], wanted, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(found["difference"], wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("length", [1e-12, 1e-3, 1.0, 1e6])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_is_proportional_to_the_direction(name, length, dims):
    network, image = smooth(dims), image_of(dims)
    parameters, direction = dict(network.named_parameters()), direction_of(network)
    once = DERIVATIVES[name](network, parameters, direction, image)
    scaled = {n: length * v for n, v in direction.items()}
    torch.testing.assert_close(
        DERIVATIVES[name](network, parameters, scaled, image) / length, once, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_along_nothing_is_zero(name, dtype, dims):
    network, image = smooth(dims).to(dtype), image_of(dims).to(dtype)
    nothing = {n: torch.zeros_like(p) for n, p in network.named_parameters()}
    found = DERIVATIVES[name](network, dict(network.named_parameters()), nothing, image)
    assert torch.equal(found, torch.zeros(2, CLASSES, *SIZES[dims], dtype=dtype))


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivative_of_parameters_that_the_output_does_not_need_is_zero(name):
    network = nn.Sequential(nn.Conv2d(1, CLASSES, 1), Apply(lambda x: torch.ones_like(x.detach())))
    found = DERIVATIVES[name](network, dict(network.named_parameters()), direction_of(network), torch.zeros(2, 1, 4, 4))
    assert torch.equal(found, torch.zeros(2, CLASSES, 4, 4))


@pytest.mark.parametrize("norm", [1e-3, 0.5])
def test_finite_difference_steps_by_the_norm_to_either_side(norm):
    network = nn.Conv2d(1, CLASSES, 1).double()
    points = []
    network.register_forward_hook(
        lambda layer, given, result: points.append((layer.weight.clone(), layer.bias.clone()))
    )
    direction = {n: 100 * v for n, v in direction_of(network).items()}
    finite_difference(network, dict(network.named_parameters()), direction, image_of(2), norm)
    assert len(points) == 2
    length = torch.cat([v.flatten() for v in direction.values()]).norm()
    for point, sign in zip(points, (1, -1), strict=True):
        for p, value, moved in zip(network.parameters(), direction.values(), point, strict=True):
            torch.testing.assert_close(moved - p.detach(), sign * norm * value / length, rtol=1e-9, atol=1e-13)


def test_finite_difference_is_of_second_order():
    network, image = smooth(2), image_of(2)
    parameters, direction = dict(network.named_parameters()), direction_of(network)
    exact = forward_mode(network, parameters, direction, image)
    errors = [
        float((finite_difference(network, parameters, direction, image, norm) - exact).norm()) for norm in (0.1, 0.05)
    ]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.02)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_layer_without_forward_mode_is_named(dims):
    network, image = smooth(dims, Apply(Square.apply)), image_of(dims)
    parameters, direction = dict(network.named_parameters()), direction_of(network)
    with pytest.raises(NoForwardModeError, match="jvp"):
        forward_mode(network, parameters, direction, image)
    # The dual level is closed again: other networks are differentiated as before.
    square = smooth(dims, Apply(torch.square))
    square.load_state_dict(network.state_dict())
    wanted = forward_mode(square, parameters, direction, image)
    found = finite_difference(network, parameters, direction, image, 1e-4)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_other_errors_of_the_network_pass():
    network = nn.Conv2d(1, CLASSES, 1)
    with pytest.raises(RuntimeError, match="channels") as caught:
        forward_mode(network, dict(network.named_parameters()), direction_of(network), torch.zeros(1, 2, 4, 4))
    assert not isinstance(caught.value, NoForwardModeError)

    def missing(x):
        raise NotImplementedError("not written yet")

    network = nn.Sequential(network, Apply(missing))
    with pytest.raises(NotImplementedError, match="not written yet"):
        forward_mode(network, dict(network.named_parameters()), direction_of(network), torch.zeros(1, 1, 4, 4))


# Preconditioners


def stepped(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], gradients: list[torch.Tensor]):
    """Take the optimizer's real step; return by how much each parameter fell."""
    before = [p.detach().clone() for p in parameters]
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g.clone()
    optimizer.step()
    return [b - p.detach() for b, p in zip(before, parameters, strict=True)]


def parameters_and_gradients(count: int) -> tuple[list[nn.Parameter], list[list[torch.Tensor]]]:
    """Two parameters and ``count`` pairs of gradients of very different sizes."""
    shapes = [(3, 4), (5,)]
    parameters = [nn.Parameter(torch.randn(s, dtype=torch.float64)) for s in shapes]
    gradients = [[torch.randn(s, dtype=torch.float64) * 10.0 ** (-k % 3 - 1) for s in shapes] for k in range(count)]
    return parameters, gradients


ADAMS = {
    "Adam": lambda p, **options: torch.optim.Adam(p, **options),
    "Adam, loops": lambda p, **options: torch.optim.Adam(p, foreach=False, **options),
    "Adam, fused": lambda p, **options: torch.optim.Adam(p, fused=True, **options),
    "AdamW": lambda p, **options: torch.optim.AdamW(p, weight_decay=0.0, **options),
    "AdamW with decay": lambda p, **options: torch.optim.AdamW(p, weight_decay=0.05, **options),
}


@pytest.mark.parametrize("name", ADAMS)
@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("steps", [0, 1, 2, 7])
@pytest.mark.parametrize(("betas", "eps"), [((0.0, 0.99), 1e-8), ((0.9, 0.999), 1e-8), ((0.5, 0.8), 0.1)])
def test_preconditioner_of_adam_is_that_of_its_real_step(name, amsgrad, steps, betas, eps):
    """The real step is ``lr * P * m`` with the bias-corrected first moment ``m``, which is the gradient for beta 0."""
    lr = 0.3
    parameters, gradients = parameters_and_gradients(steps + 1)
    optimizer = ADAMS[name](parameters, lr=lr, betas=betas, eps=eps, amsgrad=amsgrad)
    for past in gradients[:-1]:
        stepped(optimizer, parameters, past)
    before = copy.deepcopy(optimizer.state_dict())
    found = preconditioner(optimizer, parameters, gradients[-1])
    after = optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys()
    for key, state in before["state"].items():
        for entry, value in state.items():
            assert torch.equal(torch.as_tensor(after["state"][key][entry]), torch.as_tensor(value)), entry
    decayed = [p.detach() * lr * optimizer.param_groups[0]["weight_decay"] for p in parameters]
    moved = stepped(optimizer, parameters, gradients[-1])
    for p, g, diagonal, fall, decay in zip(parameters, gradients[-1], found, moved, decayed, strict=True):
        first = optimizer.state[p]["exp_avg"] / (1 - betas[0] ** (steps + 1))
        assert betas[0] > 0 or torch.equal(first, g)
        torch.testing.assert_close(lr * diagonal * first, fall - decay, rtol=1e-8, atol=1e-12)


def test_amsgrad_keeps_the_largest_second_moment():
    """The cases above can tell: after a large and a small gradient, the two variants differ."""
    results = []
    for amsgrad in (False, True):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = torch.optim.Adam([p], betas=(0.0, 0.5), eps=0.0, amsgrad=amsgrad)
        stepped(optimizer, [p], [torch.tensor([2.0], dtype=torch.float64)])
        results.append(preconditioner(optimizer, [p], [torch.tensor([0.0], dtype=torch.float64)])[0].item())
    # Second moments: 0.5 * 4 = 2, then 1 or its largest, 2; bias correction 1 - 0.25.
    assert results == pytest.approx([(1 / 0.75) ** -0.5, (2 / 0.75) ** -0.5], rel=1e-12)


@pytest.mark.parametrize("steps", [0, 3])
def test_preconditioner_of_adam_with_weight_decay_is_that_of_its_real_step(steps):
    """Adam adds ``decay * parameter`` to the gradient, from where it enters the second moment."""
    parameters, gradients = parameters_and_gradients(steps + 1)
    optimizer = torch.optim.Adam(parameters, lr=0.3, betas=(0.0, 0.99), weight_decay=0.5)
    for past in gradients[:-1]:
        stepped(optimizer, parameters, past)
    found = preconditioner(optimizer, parameters, gradients[-1])
    whole = [g + 0.5 * p.detach() for p, g in zip(parameters, gradients[-1], strict=True)]
    for diagonal, g, fall in zip(found, whole, stepped(optimizer, parameters, gradients[-1]), strict=True):
        torch.testing.assert_close(0.3 * diagonal * g, fall, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"momentum": 0.9}])
def test_preconditioner_of_sgd_is_one_as_in_its_real_step(options, steps):
    """What a step moves beyond momentum and decay is ``lr`` times the gradient."""
    lr = 0.2
    parameters, gradients = parameters_and_gradients(steps + 1)
    optimizer = torch.optim.SGD(parameters, lr=lr, **options)
    for past in gradients[:-1]:
        stepped(optimizer, parameters, past)
    found = preconditioner(optimizer, parameters, gradients[-1])
    twin = copy.deepcopy((optimizer, parameters))
    without = stepped(twin[0], twin[0].param_groups[0]["params"], [torch.zeros_like(g) for g in gradients[-1]])
    moved = stepped(optimizer, parameters, gradients[-1])
    for diagonal, g, fall, other in zip(found, gradients[-1], moved, without, strict=True):
        torch.testing.assert_close(lr * diagonal * g, fall - other, rtol=1e-9, atol=1e-12)


def test_preconditioner_follows_parameter_groups_in_any_order():
    parameters, gradients = parameters_and_gradients(2)
    groups = [
        {"params": [parameters[0]], "betas": (0.0, 0.9), "eps": 1e-2},
        {"params": [parameters[1]], "betas": (0.0, 0.5), "lr": 0.7},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.0)
    stepped(optimizer, parameters, gradients[0])
    second, first = preconditioner(optimizer, parameters[::-1], gradients[1][::-1])
    moved = stepped(optimizer, parameters, gradients[1])
    torch.testing.assert_close(0.1 * first * gradients[1][0], moved[0], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(0.7 * second * gradients[1][1], moved[1], rtol=1e-8, atol=1e-12)
    assert {key: group["lr"] for key, group in group_of(optimizer).items()} == {
        id(parameters[0]): 0.1,
        id(parameters[1]): 0.7,
    }


def test_preconditioner_of_a_parameter_without_gradient_so_far():
    """A parameter that joins later has no state: its next step is its first."""
    parameters, gradients = parameters_and_gradients(3)
    optimizer = torch.optim.AdamW(parameters, lr=0.1, betas=(0.0, 0.9), weight_decay=0.0)
    for past in gradients[:2]:
        stepped(optimizer, parameters[:1], past[:1])
    found = preconditioner(optimizer, parameters, gradients[2])
    assert len(optimizer.state) == 1
    moved = stepped(optimizer, parameters, gradients[2])
    for diagonal, g, fall in zip(found, gradients[2], moved, strict=True):
        torch.testing.assert_close(0.1 * diagonal * g, fall, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.RAdam])
def test_other_optimizers_are_refused(kind):
    parameters, gradients = parameters_and_gradients(1)
    with pytest.raises(TypeError, match=f"optimizer: found {kind.__name__}, wanted SGD, Adam or AdamW"):
        preconditioner(kind(parameters, lr=0.1), parameters, gradients[0])


# The random state


def test_random_state_is_set_again():
    state = random_state(CPU)
    first = torch.rand(3)
    assert not torch.equal(torch.rand(3), first)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), first)


def test_random_state_is_preserved_also_through_an_error():
    before = torch.get_rng_state()
    with preserved_random_state(CPU) as state:
        assert torch.equal(state[0], before)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)

    def fails():
        with preserved_random_state(CPU):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert torch.equal(torch.get_rng_state(), before)


def test_preconditioner_refuses_to_maximise():
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, maximize=True)
    with pytest.raises(ValueError, match="found maximize=True"):
        preconditioner(optimizer, [parameter], [torch.zeros(2)])
