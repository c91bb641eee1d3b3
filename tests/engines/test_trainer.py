# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The adaptation engine, in 2D and 3D."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Events

from dacal_med.engines import ComplementaryTruth, make_labeller
from dacal_med.engines.labellers import temperature_statistics
from dacal_med.engines.trainer import NonFiniteLossError
from dacal_med.io.errors import InputError
from tests.engines.builders import CLASSES, tiny_network, tiny_trainer, weights


def record(trainer):
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(dict(e.state.output[0])))
    return outputs


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("labeller", ["hard", "soft", "fixed", "learned"])
def test_runs_every_labeller_in_any_number_of_axes(dims, labeller):
    trainer = tiny_trainer(dims, labeller=labeller)
    outputs = record(trainer)
    trainer.run()
    assert len(outputs) == 9
    assert all(math.isfinite(v) for output in outputs for v in output.values())
    assert set(outputs[0]) == {"loss", "loss_source"}
    assert {"loss_source", "loss_mix", "loss_complement", "quality"} <= set(outputs[-1])
    assert outputs[-1]["loss"] == pytest.approx(sum(v for k, v in outputs[-1].items() if k.startswith("loss_")))
    assert ("temperature_mean" in outputs[-1]) == (labeller != "hard")
    assert {"mean", "min", "max"} <= set(trainer.state.temperature) or labeller == "hard"


def test_meta_step_is_taken_when_due_and_changes_the_temperature():
    trainer = tiny_trainer(max_epochs=4, meta={"every": 2, "start": 1, "learning_rate": 0.01})
    outputs = record(trainer)
    trainer.run()
    taken = ["meta_gradient_norm" in output for output in outputs]
    # Warm-up takes 3 iterations, then adaptation iterations 0, 1, 2, ...: due at 1, 3, 5, 7.
    assert taken == [False] * 3 + [False, True] * 4 + [False]
    assert "temperature_mean" not in outputs[3]  # hard labels until the start
    assert outputs[4]["temperature_mean"] != 1.0
    assert outputs[-1]["temperature_mean"] != 1.0
    assert all(output["meta_gradient_norm"] > 0 for output in outputs if "meta_gradient_norm" in output)


def test_labels_are_hard_until_the_meta_step_starts():
    """Bit by bit the hard labels' run, as long as the start is not reached."""
    first, second = tiny_trainer(labeller="hard"), tiny_trainer(meta={"start": 10_000})
    third = tiny_trainer(meta={"start": 1})
    students = []
    for trainer in (first, second, third):
        trainer.run()
        students.append(torch.cat([p.detach().flatten() for p in trainer.network.parameters()]))
    assert torch.equal(students[0], students[1])
    assert not torch.equal(students[0], students[2])


def test_settling_delays_the_pseudo_labels_and_not_the_report():
    trainer = tiny_trainer(max_epochs=4, settle_epochs=2, meta={"every": 1})
    outputs = record(trainer)
    trainer.run()
    assert ["loss_mix" in output for output in outputs] == [False] * 9 + [True] * 3
    assert ["meta_outer_loss" in output for output in outputs] == [False] * 9 + [True] * 3
    with pytest.raises(InputError, match="settle_epochs: found -1"):
        tiny_trainer(settle_epochs=-1)
    with pytest.raises(InputError, match="settle_epochs: found 3, wanted 0 to 2"):
        tiny_trainer(settle_epochs=3)


def test_source_only_never_looks_at_the_target():
    trainer = tiny_trainer(host="source_only")
    trainer.data_loader.dataset.datasets["target"] = [{"image": torch.full((1, 16, 16), math.nan)} for _ in range(5)]
    outputs = record(trainer)
    trainer.run()
    assert all(set(output) == {"loss", "loss_source"} for output in outputs)
    assert torch.isfinite(weights(trainer)).all()


def test_held_out_cases_never_train_the_student():
    """With hard labels there is no meta-step, and the held-out images change nothing."""
    first, second = tiny_trainer(labeller="hard"), tiny_trainer(labeller="hard")
    for item in second.data_loader.dataset.datasets["held_out"]:
        item["image"] = torch.rand_like(item["image"])
    first.run()
    second.run()
    assert torch.equal(weights(first), weights(second))


def test_same_seed_same_weights():
    first, second, other = tiny_trainer(), tiny_trainer(), tiny_trainer(seed=1)
    for trainer in (first, second, other):
        trainer.run()
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_teacher_follows_the_student():
    trainer = tiny_trainer(max_epochs=1, epoch_length=1, warmup_epochs=1)
    trainer.run()
    # The first update takes the student as it is.
    for mine, student in zip(trainer.teacher.network.parameters(), trainer.network.parameters(), strict=True):
        assert torch.equal(mine, student)
    assert not any(p.requires_grad for p in trainer.teacher.network.parameters())


def test_non_finite_loss_is_skipped_counted_and_stops_in_the_end():
    calls = []

    def loss(logits, targets, voxel_weights):
        calls.append(None)
        return logits.sum() * math.nan

    trainer = tiny_trainer(host="source_only", labeller="hard", loss_function=loss, max_skipped=4)
    before = weights(trainer).clone()
    with pytest.raises(NonFiniteLossError, match="4 iterations in a row"):
        trainer.run()
    assert trainer.skipped == 4
    assert torch.equal(weights(trainer), before)


def test_one_bad_iteration_does_not_stop_the_run():
    state = {"calls": 0}

    def loss(logits, targets, voxel_weights):
        state["calls"] += 1
        return logits.square().mean() * (math.nan if state["calls"] == 2 else 1.0)

    trainer = tiny_trainer(host="source_only", labeller="hard", loss_function=loss)
    trainer.run()
    assert trainer.skipped == 1
    assert torch.isfinite(weights(trainer)).all()


def test_a_gradient_that_is_not_finite_is_skipped_too():
    """The loss is a number, its slope is not."""
    trainer = tiny_trainer(
        host="source_only", labeller="hard", loss_function=lambda z, t, w: (z - z.detach()).sum().abs().sqrt()
    )
    start = weights(trainer).clone()
    with pytest.raises(NonFiniteLossError, match="non-finite loss or gradient"):
        trainer.max_skipped = 3
        trainer.run()
    assert trainer.state.iteration == 3
    assert torch.equal(weights(trainer), start)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("domain", ["source", "target"])
def test_an_infinite_voxel_leaves_nothing_in_batch_norm(domain, accumulate):
    """Statistics move in the forward pass, before the loss tells that the step is to be skipped."""
    make = lambda dims: tiny_network(dims, norm="batch")  # noqa: E731
    trainer = tiny_trainer(make_network=make, accumulate=accumulate, meta={"every": 1})
    moved = []

    @trainer.on(Events.ITERATION_STARTED(once=5))
    def spoil(engine):
        engine.state.batch[domain]["image"][0, 0, 8, 8] = math.inf
        moved.append([buffer.clone() for buffer in engine.network.buffers()])

    trainer.add_event_handler(
        Events.ITERATION_COMPLETED(once=5), lambda e: moved.append([b.clone() for b in e.network.buffers()])
    )
    trainer.run()
    assert trainer.skipped == trainer.state.meta_skipped == 1
    assert all(torch.equal(before, after) for before, after in zip(*moved, strict=True))
    for network in (trainer.network, trainer.teacher.network):
        assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert torch.isfinite(trainer.teacher.network(torch.rand(1, 1, 16, 16))).all()


def test_non_finite_meta_gradients_are_skipped_counted_and_stop_in_the_end():
    class Bad(ComplementaryTruth):
        def outer_loss(self, batch, mask, hard):
            loss = super().outer_loss(batch, mask, hard)
            return lambda forward: loss(forward) * math.nan

    trainer = tiny_trainer(objective=Bad(), meta={"every": 1}, max_skipped=4)
    outputs = record(trainer)
    temperature = [p.detach().clone() for p in trainer.labeller.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"4 iterations in a row gave a non-finite meta-gradient"):
        trainer.run()
    assert trainer.state.iteration == 3 + 4  # after the warm-up
    assert trainer.state.meta_skipped == 4
    assert trainer.skipped == 0  # the student goes on
    assert [output.get("meta_skipped") for output in outputs] == [None] * 3 + [1.0, 2.0, 3.0]
    assert all(torch.equal(p, b) for p, b in zip(trainer.labeller.parameters(), temperature, strict=True))


def test_gradient_is_clipped():
    trainer = tiny_trainer(host="source_only", labeller="hard", max_gradient_norm=1e-3)
    norms = []
    step = trainer.optimizer.step

    def spy(*args, **kwargs):
        norms.append(torch.stack([p.grad.norm() for p in trainer.network.parameters()]).norm())
        return step(*args, **kwargs)

    trainer.optimizer.step = spy
    trainer.run()
    assert max(norms) <= 1e-3 * (1 + 1e-4)


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="warmup_epochs: found 5, wanted 0 to max_epochs=3"):
        tiny_trainer(warmup_epochs=5)
    trainer = tiny_trainer()
    from dacal_med.engines import AdaptationTrainer

    other = make_labeller("learned", CLASSES, 1, 2)
    with pytest.raises(InputError, match="another labeller"):
        AdaptationTrainer(
            "cpu",
            1,
            trainer.data_loader,
            trainer.network,
            trainer.optimizer,
            CLASSES,
            trainer.host,
            other,
            trainer.meta,
        )


def test_held_out_objective_without_held_out_cases_says_so():
    with pytest.raises(InputError, match="held_out_share"):
        tiny_trainer(objective=ComplementaryTruth("held_out"), held_out=0)
    tiny_trainer(objective=ComplementaryTruth("training"), held_out=0).run()
    tiny_trainer(labeller="hard", held_out=0).run()
    tiny_trainer(host="source_only", held_out=0).run()


def test_temperature_statistics_count_the_bounds():
    labeller = make_labeller(
        "learned", CLASSES, 1, 2, temperature_network={"min_temperature": 0.5, "max_temperature": 2.0}
    )
    temperature = torch.tensor([0.5, 0.5, 1.0, 2.0]).view(1, 1, 2, 2)
    found = temperature_statistics(temperature, labeller)
    assert found == {"mean": 1.0, "min": 0.5, "max": 2.0, "at_bounds": 0.75}
    assert temperature_statistics(None, labeller) == {}


def test_description_tells_configurations_apart():
    assert tiny_trainer().describe() == tiny_trainer().describe()
    assert tiny_trainer().describe() != tiny_trainer(labeller="hard").describe()
    assert tiny_trainer().describe() != tiny_trainer(complement="none").describe()
