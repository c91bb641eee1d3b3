# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Mixed precision on the CPU: the meta-gradient keeps its direction, scaled losses give unscaled gradients."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.nets import UNet

from dacal_med.core.batch import from_labels, soft_cross_entropy
from dacal_med.core.bilevel import BilevelStep
from dacal_med.core.mixing import ClassMask, complementary_mixes
from dacal_med.core.precision import Precision
from dacal_med.core.pseudo_labels import SoftLabels
from dacal_med.engines.hosts import pseudo_batch
from tests.engines.builders import blobs, tiny_trainer, weights

CLASSES = 3


def trained(dims):
    """A U-Net of the bundles' shape after a few steps on bright boxes, with its optimizer."""
    torch.manual_seed(0)
    network = UNet(dims, 1, CLASSES, (8, 16, 32), (2, 2), num_res_units=2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    items = blobs(4, dims, 1.0, 1)
    image, label = (torch.stack([item[key] for item in items]) for key in ("image", "label"))
    source = from_labels(image, label, CLASSES)
    for _ in range(15):
        optimizer.zero_grad()
        soft_cross_entropy(network(source.image), source.targets, source.weights).backward()
        optimizer.step()
    return network, optimizer, source, label


def meta_gradient(network, optimizer, source, label, dtype, step_size=None):
    """dL_out / d log T on a DACS mix, and the difference of the losses to float32."""
    torch.manual_seed(1)
    target = torch.stack([item["image"] for item in blobs(4, image_axes(source), -1.0, 2)])
    with torch.no_grad():
        logits = network(target)
    leaf = torch.zeros_like(logits[:, :1]).requires_grad_(True)
    pseudo = SoftLabels(threshold=0.3).from_temperature(logits, leaf.exp())
    mask = ClassMask()(label)
    mix_a, mix_b = complementary_mixes(mask, source, pseudo_batch(target, pseudo))
    step = BilevelStep(network, optimizer, step_size=step_size)
    step.precision = Precision(dtype)
    # The outer loss sees the source part of the complement alone.
    outer_weights = mix_b.weights * ~mask
    result = step(
        mix_a,
        lambda forward: soft_cross_entropy(forward(mix_b.image), mix_b.targets.detach(), outer_weights.detach()),
        [leaf],
    )
    return result.gradients[0].flatten(), result


def image_axes(source):
    return source.image.dim() - 2


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize(("dtype", "cosine"), [(torch.bfloat16, 0.99), (torch.float16, 0.999)])
def test_the_meta_gradient_keeps_its_direction(dims, dtype, cosine):
    setting = trained(dims)
    full, _ = meta_gradient(*setting, None)
    reduced, result = meta_gradient(*setting, dtype)
    assert result.method == "forward"
    assert not torch.equal(full, reduced)
    assert float(torch.nn.functional.cosine_similarity(full, reduced, dim=0)) >= cosine
    assert float(reduced.norm() / full.norm()) == pytest.approx(1.0, abs=0.1)


def test_directions_too_small_for_float16_survive():
    """A look-ahead of 1e-9 puts the direction below the smallest float16; its derivative is scaled, not lost."""
    setting = trained(2)
    small, _ = meta_gradient(*setting, torch.float16, step_size=1e-9)
    full, _ = meta_gradient(*setting, None, step_size=1e-9)
    assert float(full.double() @ small.double() / (full.double().norm() * small.double().norm())) >= 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_run_in_reduced_precision_ends_near_the_full_one(dtype):
    options = {"make_optimizer": torch.optim.SGD, "meta": {"every": 1}}
    full, reduced = tiny_trainer(**options), tiny_trainer(amp=True, amp_dtype=dtype, **options)
    start = weights(full).clone()
    for trainer in (full, reduced):
        trainer.run()
    assert (reduced.student.scaler is not None) == (dtype == torch.float16)
    assert reduced.skipped == 0
    moved, difference = float((weights(full) - start).norm()), float((weights(full) - weights(reduced)).norm())
    assert 0.0 < difference < 0.1 * moved
    assert all(p.dtype == torch.float32 for p in reduced.network.parameters())


def test_on_the_cpu_mixed_precision_must_be_asked_for_by_type():
    assert tiny_trainer(amp=True).precision.dtype is None
    assert tiny_trainer(amp=True, amp_dtype=torch.bfloat16).precision.dtype is torch.bfloat16
    assert tiny_trainer(amp=False, amp_dtype=torch.bfloat16).precision.dtype is None


def test_a_scale_that_is_too_large_is_lowered_and_counted():
    trainer = tiny_trainer(
        amp=True,
        amp_dtype=torch.float16,
        host="source_only",
        labeller="hard",
        loss_function=lambda z, t, w: z.square().mean() * 10,
    )
    trainer.student.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    start = weights(trainer).clone()
    trainer.run()
    assert trainer.state.overflows > 0
    assert trainer.skipped == 0
    assert trainer.student.scaler.get_scale() < 2.0**40
    # Updates that overflowed move the teacher no more than the student.
    assert trainer.teacher.updates == trainer.state.iteration - trainer.state.overflows
    assert torch.isfinite(weights(trainer)).all()
    assert math.isfinite(float(start.norm()))
