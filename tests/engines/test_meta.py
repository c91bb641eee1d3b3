# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The temperature learner: direction of its gradient, prior, objectives."""

from __future__ import annotations

import itertools

import pytest
import torch
from monai.networks.nets import UNet

from dacal_med.core.batch import from_labels, soft_cross_entropy
from dacal_med.core.mixing import ClassMask, complementary_mixes
from dacal_med.core.pseudo_labels import HardLabels
from dacal_med.engines import make_labeller, make_temperature_learner
from dacal_med.engines.domains import DomainBatch
from dacal_med.engines.hosts import pseudo_batch
from dacal_med.io.errors import InputError

CLASSES = 3


def scene(dims=2, learning_rate=1e-2, dtype=torch.float64, objective=None, **options):
    """A batch, a mask, teacher logits and everything that learns, in float64."""
    torch.manual_seed(3)
    size = (2, 1, *[8] * dims)
    network = UNet(dims, 1, CLASSES, (4, 8), (2,), num_res_units=1).to(dtype)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    labeller = make_labeller("learned", CLASSES, 1, dims, threshold=0.4, temperature_network={"scale": 1.0}).to(dtype)
    learner = make_temperature_learner(
        labeller, network, optimizer, objective, learning_rate=learning_rate, **{"every": 1, **options}
    )
    labels = torch.randint(0, CLASSES, size)
    held_labels = torch.randint(0, CLASSES, size)
    batch = DomainBatch(
        from_labels(torch.randn(size, dtype=dtype), labels, CLASSES),
        labels,
        torch.randn(size, dtype=dtype),
        from_labels(torch.randn(size, dtype=dtype), held_labels, CLASSES),
    )
    mask = ClassMask()(labels)
    logits = 3.0 * torch.randn(2, CLASSES, *[8] * dims, dtype=dtype)
    hard = HardLabels(threshold=0.4)(logits, batch.target_image)
    return network, optimizer, labeller, learner, batch, mask, logits, hard


@pytest.mark.parametrize("dims", [2, 3])
def test_the_update_follows_the_exact_meta_gradient(dims):
    """One step against double backward through the look-ahead, down to the temperature network's own gradient."""
    network, _, labeller, learner, batch, mask, logits, hard = scene(dims, prior=0.0)
    report = learner.update(batch, mask, logits, hard)
    found = torch.cat([p.grad.flatten() for p in labeller.network.parameters() if p.grad is not None])

    network, _, labeller, learner, batch, mask, logits, hard = scene(dims, prior=0.0)
    log_temperature = labeller.temperature(logits, batch.target_image).log()
    pseudo = labeller.from_temperature(logits, log_temperature.exp())
    mix_a, _ = complementary_mixes(mask, batch.source, pseudo_batch(batch.target_image, pseudo))
    parameters = dict(network.named_parameters())
    inner = soft_cross_entropy(network(mix_a.image), mix_a.targets, mix_a.weights)
    gradients = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
    ahead = {name: p - 0.5 * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
    zero = torch.zeros_like(batch.held_out.weights)
    target = pseudo_batch(batch.target_image, hard)
    mix_b_image = torch.where(mask, target.image, batch.held_out.image)
    mix_b_targets = torch.where(mask, target.targets, batch.held_out.targets)
    mix_b_weights = torch.where(mask, zero, batch.held_out.weights)
    outer = soft_cross_entropy(torch.func.functional_call(network, ahead, (mix_b_image,)), mix_b_targets, mix_b_weights)
    expected = torch.autograd.grad(outer, list(labeller.network.parameters()), allow_unused=True)
    expected = torch.cat([g.flatten() for g in expected if g is not None])

    assert report.outer_loss == pytest.approx(float(outer), rel=1e-9)
    assert report.finite
    # The normalisation is one positive factor.
    factor = float(found @ expected / (expected @ expected))
    assert factor > 0
    torch.testing.assert_close(found, factor * expected, rtol=1e-6, atol=1e-9 * float(found.norm()))


def test_a_step_against_the_gradient_lowers_the_outer_loss():
    _, _, _, learner, batch, mask, logits, hard = scene(prior=0.0, learning_rate=3e-3)
    losses = [learner.update(batch, mask, logits, hard).outer_loss for _ in range(30)]
    assert losses[-1] < losses[0] - 1e-6
    assert sum(b < a for a, b in itertools.pairwise(losses)) > 25


def test_the_prior_alone_pulls_the_temperature_to_its_centre():
    _, _, labeller, learner, batch, mask, logits, hard = scene(prior=1e6, prior_temperature=2.0, learning_rate=0.02)
    for _ in range(300):
        learner.update(batch, mask, logits, hard)
    temperature = labeller.temperature(logits, batch.target_image)
    assert float(temperature.mean()) == pytest.approx(2.0, abs=0.05)
    assert "log_centre" in labeller.state_dict()


def test_the_push_does_not_depend_on_the_scale_of_the_losses():
    """The student's step size scales the raw meta-gradient, not what the temperature learns."""
    moved = []
    for step_size in (0.1, 1e-4):
        _, _, labeller, learner, batch, mask, logits, hard = scene(prior=0.0, step_size=step_size)
        learner.update(batch, mask, logits, hard)
        moved.append(labeller.network.layers[-1].weight.grad.clone())
    cosine = torch.nn.functional.cosine_similarity(moved[0].flatten(), moved[1].flatten(), dim=0)
    assert float(moved[0].norm() / moved[1].norm()) == pytest.approx(1.0, rel=0.3)
    assert float(cosine) > 0.9


def test_the_student_is_left_alone():
    network, optimizer, _, learner, batch, mask, logits, hard = scene()
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    learner.update(batch, mask, logits, hard)
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    assert all(p.grad is None for p in network.parameters())
    assert not optimizer.state


def test_a_non_finite_gradient_is_not_taken():
    network, _, labeller, learner, batch, mask, logits, hard = scene()
    before = [p.detach().clone() for p in labeller.network.parameters()]
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    report = learner.update(batch, mask, logits, hard)
    assert not report.finite
    assert all(torch.equal(p, b) for p, b in zip(labeller.network.parameters(), before, strict=True))


def test_balanced_classes_get_the_same_push():
    """Each class that the teacher predicts has a push of root mean square 1 over as many parts as there are classes."""
    _, _, labeller, learner, batch, mask, logits, hard = scene(balance="class", prior=0.0)
    seen = {}

    class Recorded(torch.nn.Module):
        def forward(self, logits, image):
            seen["log"] = torch.zeros_like(logits[:, :1]).requires_grad_(True)
            return seen["log"].exp()

    original, labeller.network = labeller.network, Recorded()
    learner.update(batch, mask, logits, hard)
    labeller.network = original
    push, classes = seen["log"].grad, logits.argmax(dim=1, keepdim=True)
    present = classes[~mask].unique().tolist()
    assert len(present) == CLASSES
    for k in present:
        voxels = (classes == k) & ~mask & (hard.weights > 0)
        rms = (push[voxels] * voxels.sum() * CLASSES).square().mean().sqrt()
        assert float(rms) == pytest.approx(1.0, rel=1e-5)


def test_settings_out_of_range_are_refused():
    with pytest.raises(InputError, match="meta#balance: found 'region'"):
        scene(balance="region")
    with pytest.raises(InputError, match="prior_temperature='source'"):
        scene(prior_temperature="source")
    for options in ({"every": 0}, {"start": -1}, {"prior": -1.0}, {"prior_temperature": 0.0}):
        with pytest.raises(InputError, match=f"{next(iter(options))}={next(iter(options.values()))}"):
            scene(**options)
