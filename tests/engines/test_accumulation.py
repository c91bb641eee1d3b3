# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Micro-batches give the parameters of the large batch: student, teacher and temperature network."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from dacal_med.core.batch import in_parts
from dacal_med.core.mixing import BoxMask
from dacal_med.engines import TemperatureFeedback, dice_cross_entropy, make_host
from dacal_med.io.errors import InputError
from tests.engines.builders import blobs, tiny_network, tiny_trainer, weights


def double(dims):
    return tiny_network(dims).double()


def run(dtype=torch.float64, dims=2, **options):
    """A run in which everything takes part; the images stay float32, so networks in float64 convert them."""
    host = make_host("mic", base=make_host("dacs", complement="same", mask_generator=BoxMask()), block_size=4)
    trainer = tiny_trainer(
        dims,
        host=options.pop("host", host),
        batch_size=4,
        meta={"every": 1, "learning_rate": 0.01},
        truth_loss_function=dice_cross_entropy,
        make_optimizer=options.pop("make_optimizer", torch.optim.SGD),
        max_gradient_norm=1.0,
        **options,
    )
    for module in (trainer.network, trainer.teacher.network, trainer.labeller):
        module.to(dtype)
    if dtype == torch.float64:
        for module in (trainer.network, trainer.teacher.network):
            module.register_forward_pre_hook(lambda _, inputs: tuple(x.double() for x in inputs))
    before = weights(trainer).clone()
    trainer.run()
    after = weights(trainer)
    assert float((after - before).norm()) > 1e-3
    return after, trainer


@pytest.mark.parametrize("dims", [2, 3])
def test_equals_the_large_batch(dims):
    feedback = [TemperatureFeedback(blobs(3, dims, 1.0, 4), highest=4.0) for _ in range(2)]
    whole, _ = run(torch.float32, dims, feedback=feedback[0])
    two, trainer = run(torch.float32, dims, feedback=feedback[1], accumulate=2)
    assert float((whole - two).abs().max()) < 1e-5
    assert float(trainer.labeller.log_centre) != 0.0
    assert trainer.state.iteration == 9


def test_equals_the_large_batch_to_the_last_digits_in_float64():
    whole, _ = run()
    for accumulate in (2, 4):
        parts, _ = run(accumulate=accumulate)
        assert float((whole - parts).abs().max()) < 1e-10


def test_sums_over_the_batch_are_needed(monkeypatch):
    """Without them the Dice loss of micro-batches is another loss."""
    monkeypatch.setattr("dacal_med.engines.student.needs_sums", lambda loss: False)
    whole, _ = run(host="source_only", labeller="hard")
    parts, _ = run(host="source_only", labeller="hard", accumulate=2)
    assert float((whole - parts).abs().max()) > 1e-8


def test_batch_norm_statistics_move_once_for_each_micro_batch():
    """The pass that collects sums leaves no trace."""
    _, trainer = run(torch.float32, make_network=lambda dims: tiny_network(dims, norm="batch"), accumulate=2)
    tracked = [b for name, b in trainer.network.named_buffers() if name.endswith("num_batches_tracked")]
    # 3 iterations of warm-up with one term, 6 of self-training with four (source, two mixes, masked), two parts each.
    assert {int(b) for b in tracked} == {2 * (3 + 6 * 4)}


def test_the_order_of_the_data_is_that_of_the_large_batch():
    seen = []
    for accumulate in (1, 2):
        trainer = tiny_trainer(batch_size=4, accumulate=accumulate)
        images = []
        trainer.add_event_handler(
            Events.ITERATION_STARTED, lambda e, images=images: images.append(e.state.batch["source"]["image"])
        )
        trainer.run()
        seen.append(torch.stack(images))
    assert torch.equal(*seen)


def test_parts_must_divide_the_batch():
    with pytest.raises(InputError, match="accumulate: found 3, wanted a divisor of batch_size=4"):
        tiny_trainer(batch_size=4, accumulate=3)
    with pytest.raises(InputError, match="accumulate: found 0"):
        tiny_trainer(accumulate=0)
    with pytest.raises(ValueError, match="parts: found 2 for a batch of 3"):
        in_parts(torch.zeros(3, 1), 2)
    assert [tuple(part.shape) for part in in_parts(torch.zeros(0, 1), 2)] == [(0, 1)] * 2
