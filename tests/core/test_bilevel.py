# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The meta-gradient against an independent double backward."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from monai.data import MetaTensor
from monai.networks.nets import BasicUNet, DynUNet, SegResNet, UNet
from torch import nn
from torch.func import functional_call

from dacal_med.core.batch import LabelledBatch, soft_cross_entropy
from dacal_med.core.bilevel import BilevelStep
from dacal_med.core.differentiation import NoForwardModeError
from dacal_med.core.temperature import MetaTemperatureNetwork
from tests.core.builders import Square

CLASSES = 3
NETWORKS = {
    "UNet": lambda d: UNet(d, 1, CLASSES, (4, 8, 8), (2, 2), num_res_units=1),
    "UNet dropout batchnorm": lambda d: UNet(d, 1, CLASSES, (4, 8), (2,), num_res_units=1, dropout=0.3, norm="batch"),
    "BasicUNet": lambda d: BasicUNet(d, 1, CLASSES, features=(2, 2, 4, 4, 4, 2)),
    "BasicUNet dropout": lambda d: BasicUNet(d, 1, CLASSES, features=(2, 2, 4, 4, 4, 2), dropout=0.2, norm="batch"),
    "SegResNet": lambda d: SegResNet(d, 8, 1, CLASSES, blocks_down=(1, 1), blocks_up=(1,)),
    "SegResNet dropout": lambda d: SegResNet(d, 8, 1, CLASSES, dropout_prob=0.2, blocks_down=(1, 1), blocks_up=(1,)),
    "DynUNet": lambda d: DynUNet(d, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 8]),
    "DynUNet dropout batchnorm": lambda d: DynUNet(
        d, 1, CLASSES, [3, 3, 3], [1, 2, 2], [2, 2], filters=[4, 4, 8], dropout=0.2, norm_name="batch"
    ),
}
# The float32 reference is also computed in float32, where networks that divide by small variances round differently.
PRECISION = {torch.float64: 1e-10, torch.float32: 1e-5}


class Problem:
    """A student, a temperature network, inner and outer data."""

    def __init__(self, network: nn.Module, dims: int, optimizer: type, dtype=torch.float64, steps: int = 0, size=None):
        size = size or ((32,) * dims if isinstance(network, BasicUNet) else (8,) * dims)
        generator = torch.Generator().manual_seed(3)

        def rand(*shape):
            return torch.randn(2, *shape, *size, generator=generator).to(dtype)

        self.network = network.to(dtype).train()
        self.temperature = MetaTemperatureNetwork(CLASSES, 1, dims, inputs=("logits", "image")).to(dtype)
        with torch.no_grad():
            for p in self.temperature.parameters():
                p += 0.3 * torch.randn(p.shape, generator=generator).to(dtype)
        self.logits, self.image, self.weights = 3 * rand(CLASSES), rand(1), rand(1).abs()
        self.outer_image, self.outer_targets = rand(1), rand(CLASSES).softmax(1)
        self.optimizer = optimizer(network.parameters(), lr=1e-2)
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.network(rand(1)).square().mean().backward()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def inner(self) -> LabelledBatch:
        soft = (self.logits / self.temperature(self.logits, self.image)).softmax(1)
        return LabelledBatch(self.image, soft, self.weights)

    def outer(self, forward):
        return soft_cross_entropy(forward(self.outer_image), self.outer_targets, torch.ones_like(self.weights))

    def result(self, **options):
        torch.manual_seed(11)
        inner = self.inner()
        return BilevelStep(self.network, self.optimizer, **options)(
            inner, self.outer, list(self.temperature.parameters())
        )

    def oracle(self, chosen=lambda name: True):
        """Double backward through the look-ahead step, written out anew."""
        torch.manual_seed(11)
        inner = self.inner()
        buffers = {k: v.clone() for k, v in self.network.named_buffers()}
        named = {k: p for k, p in self.network.named_parameters() if chosen(k)}
        parameters = list(named.values())

        def run(new, image):
            copies = {k: v.clone() for k, v in buffers.items()}
            return functional_call(self.network, {**new, **copies}, (image,), tie_weights=False)

        log_p = run(named, inner.image).log_softmax(1)
        loss = -(inner.weights * (inner.targets * log_p).sum(1, keepdim=True)).sum() / inner.weights.numel()
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
        ahead = {}
        for (name, p), g in zip(named.items(), gradients, strict=True):
            g = torch.zeros_like(p) if g is None else g
            scale = torch.ones_like(p)
            if isinstance(self.optimizer, torch.optim.AdamW):
                state = self.optimizer.state.get(p, {})
                t = float(state.get("step", 0)) + 1
                v = 0.999 * state.get("exp_avg_sq", torch.zeros_like(p)) + 0.001 * g.detach() ** 2
                scale = 1 / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            ahead[name] = p.detach() - 1e-2 * scale * g
        outer = self.outer(lambda image: run(ahead, image))
        grads = torch.autograd.grad(outer, list(self.temperature.parameters()), allow_unused=True)
        return torch.cat([g.flatten() for g in grads]), outer.detach()


def flat(result) -> torch.Tensor:
    return torch.cat([g.flatten() for g in result.gradients])


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_double_backward_in_float64(name, dims, optimizer):
    problem = Problem(NETWORKS[name](dims), dims, optimizer)
    wanted, outer = problem.oracle()
    result = problem.result(method="forward")
    assert result.method == "forward"
    assert relative_error(flat(result), wanted) <= PRECISION[torch.float64]
    assert float(result.outer_loss) == pytest.approx(float(outer), rel=1e-12)
    assert float(result.norm) == pytest.approx(float(wanted.norm()), rel=1e-9)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_double_backward_in_float32(name, dims, optimizer):
    # After a few real steps: a fresh AdamW divides gradients by their own size, which magnifies rounding of tiny ones.
    problem = Problem(NETWORKS[name](dims), dims, optimizer, torch.float32, steps=3)
    wanted, _ = problem.oracle()
    assert relative_error(flat(problem.result(method="forward")), wanted) <= PRECISION[torch.float32]


@pytest.mark.parametrize("name", ["UNet dropout batchnorm", "DynUNet"])
def test_equals_double_backward_after_real_steps(name):
    problem = Problem(NETWORKS[name](2), 2, torch.optim.AdamW, steps=3)
    wanted, _ = problem.oracle()
    assert relative_error(flat(problem.result(method="forward")), wanted) <= 1e-10


@pytest.mark.parametrize("name", ["UNet", "UNet dropout batchnorm"])
def test_other_methods_agree(name):
    problem = Problem(NETWORKS[name](2), 2, torch.optim.AdamW, steps=2)
    wanted, _ = problem.oracle()
    assert relative_error(flat(problem.result(method="double_backward")), wanted) <= 1e-10
    difference = problem.result(method="difference")
    assert difference.method == "difference"
    # The kinks of PReLU between the two points cost accuracy.
    assert relative_error(flat(difference), wanted) <= 2e-3


def test_part_of_the_network_takes_the_step():
    problem = Problem(NETWORKS["UNet"](2), 2, torch.optim.SGD)
    chosen = lambda name: name.startswith("model.2")  # noqa: E731
    wanted, _ = problem.oracle(chosen)
    assert relative_error(flat(problem.result(parameters=chosen)), wanted) <= 1e-10
    whole, _ = problem.oracle()
    assert relative_error(wanted, whole) > 1e-3


def test_step_size_replaces_the_learning_rate():
    problem = Problem(NETWORKS["UNet"](2), 2, torch.optim.SGD)
    assert relative_error(flat(problem.result(step_size=1e-2)), problem.oracle()[0]) <= 1e-10
    assert relative_error(flat(problem.result(step_size=1.0)), problem.oracle()[0]) > 1e-3


def test_leaves_everything_as_it_was():
    problem = Problem(NETWORKS["UNet dropout batchnorm"](2), 2, torch.optim.AdamW, steps=1)
    problem.network(problem.image).sum().backward()
    before = {k: v.clone() for k, v in problem.network.state_dict().items()}
    gradients = [p.grad.clone() for p in problem.network.parameters()]
    state = torch.get_rng_state()
    inner = problem.inner()
    BilevelStep(problem.network, problem.optimizer)(inner, problem.outer, list(problem.temperature.parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert problem.network.training
    for name, value in problem.network.state_dict().items():
        assert torch.equal(value, before[name]), name
    for p, g in zip(problem.network.parameters(), gradients, strict=True):
        assert torch.equal(p.grad, g)


class NoForwardMode(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, CLASSES, 1)

    def forward(self, x):
        return self.last(Square.apply(self.first(x)))


def test_falls_back_to_finite_differences_with_one_warning():
    torch.manual_seed(0)
    problem = Problem(NoForwardMode(), 2, torch.optim.SGD)
    step = BilevelStep(problem.network, problem.optimizer)
    parameters = list(problem.temperature.parameters())
    with pytest.warns(UserWarning, match="NoForwardMode has a layer without forward-mode derivative") as caught:
        result = step(problem.inner(), problem.outer, parameters)
    assert len(caught) == 1
    assert result.method == "difference"
    # Square has a double backward, from which the oracle is taken.
    assert relative_error(flat(result), problem.oracle()[0]) <= 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert step(problem.inner(), problem.outer, parameters).method == "difference"
    with pytest.raises(NoForwardModeError):
        problem.result(method="forward")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        x = self.first(x)
        tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
        mixed = torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.last(mixed.squeeze(1).transpose(1, 2).reshape(x.shape) + x)


def test_fused_attention_is_handled():
    torch.manual_seed(0)
    problem = Problem(Attention(), 2, torch.optim.SGD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = problem.result()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted, _ = problem.oracle()
    assert relative_error(flat(result), wanted) <= 1e-4


def test_penalty_is_added():
    problem = Problem(NETWORKS["UNet"](2), 2, torch.optim.SGD)
    parameters = list(problem.temperature.parameters())
    plain = problem.result()
    inner = problem.inner()
    penalty = 0.3 * problem.temperature(problem.logits, problem.image).log().square().mean()
    alone = torch.autograd.grad(penalty, parameters, retain_graph=True)
    both = BilevelStep(problem.network, problem.optimizer)(inner, problem.outer, parameters, penalty)
    wanted = flat(plain) + torch.cat([g.flatten() for g in alone])
    torch.testing.assert_close(flat(both), wanted)


def test_average_sees_the_gradients_that_ranks_share():
    problem = Problem(NETWORKS["UNet"](2), 2, torch.optim.SGD)
    seen = []

    def average(tensors):
        seen.append([t.shape for t in tensors])
        for t in tensors:
            t.mul_(2.0)  # as if the other rank had seen three times as much

    doubled = problem.result(average=average)
    shapes = [p.shape for p in problem.network.parameters()]
    assert seen == [shapes, shapes]
    assert not torch.allclose(flat(doubled), flat(problem.result()))


def test_unused_and_frozen_parameters():
    class Extra(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Conv2d(1, CLASSES, 3, padding=1), nn.Linear(2, 2)
            self.frozen = nn.Conv2d(CLASSES, CLASSES, 1).requires_grad_(False)

        def forward(self, x):
            return self.frozen(self.used(x))

    problem = Problem(Extra(), 2, torch.optim.SGD)
    step = BilevelStep(problem.network, problem.optimizer)
    assert set(step.parameters) == {"used.weight", "used.bias", "unused.weight", "unused.bias"}
    chosen = lambda name: not name.startswith("frozen")  # noqa: E731
    assert relative_error(flat(problem.result()), problem.oracle(chosen)[0]) <= 1e-10


def test_metatensors_pass():
    problem = Problem(NETWORKS["UNet"](2), 2, torch.optim.SGD)
    wanted = flat(problem.result())
    problem.image = MetaTensor(problem.image)
    problem.outer_image = MetaTensor(problem.outer_image)
    found = problem.result()
    assert type(found.gradients[0]) is torch.Tensor
    torch.testing.assert_close(flat(found), wanted)


def test_bfloat16_keeps_the_direction():
    problem = Problem(NETWORKS["UNet"](3), 3, torch.optim.AdamW, torch.float32, steps=5, size=(16,) * 3)
    wanted = flat(problem.result())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = flat(problem.result())
    assert torch.isfinite(found).all()
    assert float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)) >= 0.99


def test_non_finite_outer_loss_shows_in_the_norm():
    problem = Problem(NETWORKS["UNet"](2), 2, torch.optim.SGD)
    problem.outer_targets = problem.outer_targets * math.nan
    assert not torch.isfinite(problem.result().norm)


def test_wrong_calls_are_refused():
    network = NETWORKS["UNet"](2)
    sgd = torch.optim.SGD(network.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="method: found 'reverse'"):
        BilevelStep(network, sgd, method="reverse")
    with pytest.raises(ValueError, match="parameters: found 'last'"):
        BilevelStep(network, sgd, parameters="last")
    with pytest.raises(ValueError, match="none takes the look-ahead step"):
        BilevelStep(network, sgd, parameters=lambda name: name == "head")
    problem = Problem(network, 2, torch.optim.RMSprop)
    with pytest.raises(TypeError, match="found RMSprop, wanted SGD, Adam or AdamW"):
        problem.result()
