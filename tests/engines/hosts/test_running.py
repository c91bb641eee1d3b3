# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Each host with each labeller through the engine, in 2D and 3D, and stacked as in the papers."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Events

from dacal_med.engines.hosts import HOSTS, make_host
from dacal_med.engines.labellers import LABELLERS
from dacal_med.io.errors import InputError
from dacal_med.networks import HRDA
from tests.engines.builders import CLASSES, tiny_network, tiny_trainer, weights

TERMS = {
    "source_only": {"source"},
    "mean_teacher": {"source", "consistency"},
    "dacs": {"source", "mix"},
    "daformer": {"source", "mix", "feature_distance"},
    "mic": {"source", "mix", "masked"},
}
LAYER = "model.0"  # of the tiny network, at half resolution


def make(name, dims):
    if name != "daformer":
        return make_host(name)
    return make_host(name, frozen=tiny_network(dims, seed=9), layer=LAYER, frozen_layer=LAYER, thing_classes=[1, 2])


def hrda(dims):
    return HRDA(tiny_network(dims), CLASSES, 1, dims)


def stacked(dims):
    return make_host("mic", base=make("daformer", dims), complement="same")


def run(**options):
    trainer = tiny_trainer(**{"max_epochs": 2, "epoch_length": 2, **options})
    outputs = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(dict(e.state.output[0])))
    trainer.run()
    assert all(math.isfinite(value) for output in outputs for value in output.values())
    return trainer, outputs


def losses(output):
    return {key.removeprefix("loss_") for key in output if key.startswith("loss_")}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("labeller", LABELLERS)
@pytest.mark.parametrize("name", sorted(HOSTS))
def test_each_host_with_each_labeller(name, labeller, dims):
    _, outputs = run(dims=dims, host=make(name, dims), labeller=labeller, meta={"every": 1})
    assert losses(outputs[-1]) == TERMS[name]
    assert losses(outputs[0]) <= {"source", "feature_distance"}
    learns = labeller == "learned" and name != "source_only"
    assert (outputs[-1].get("meta_gradient_norm", 0.0) > 0) == learns


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("labeller", LABELLERS)
def test_masked_consistency_on_hrda_on_daformer(labeller, dims):
    trainer, outputs = run(dims=dims, host=stacked(dims), labeller=labeller, make_network=hrda)
    assert losses(outputs[-1]) == {"source", "feature_distance", "mix", "complement", "masked"}
    assert trainer.network.attention.layers[-1].weight.abs().sum() > 0
    assert trainer.meta is None or trainer.meta.step.method == "auto"
    assert trainer.meta is None or not trainer.meta.step._falls_back


@pytest.mark.parametrize("host", [lambda: stacked(2), lambda: make_host("mic", base="mean_teacher")])
def test_a_run_that_was_interrupted_continues_bit_by_bit(host):
    """Blocks, noise and detail crops come from the seed, the iteration and the rank."""
    options = {"make_network": hrda, "max_epochs": 3, "epoch_length": 2}
    whole, _ = run(host=host(), **options)
    first = tiny_trainer(host=host(), **options)
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda e: e.terminate())
    first.run()
    second = tiny_trainer(host=host(), **options)
    torch.manual_seed(12345)
    for name, part in second.checkpoint_objects().items():
        part.load_state_dict(first.checkpoint_objects()[name].state_dict())
    second.run()
    assert first.state.iteration < second.state.iteration == whole.state.iteration
    assert torch.equal(weights(second), weights(whole))


def test_a_block_that_does_not_fit_stops_the_first_iteration_of_the_warm_up():
    trainer = tiny_trainer(dims=3, host=make_host("mic", block_size=[4, 4]))
    with pytest.raises(InputError, match="host#block_size: found 2 numbers, wanted 3"):
        trainer.run()
    assert trainer.state.iteration == 1


def test_stacked_hosts_tell_their_settings_in_the_description():
    usual = tiny_trainer(host=make_host("mic")).describe()
    for option, place, value in (
        ({"mask_ratio": 0.5}, "host#mask_ratio", "0.5"),
        ({"complement": "same"}, "host#base#complement", "same"),
        ({"base": "mean_teacher"}, "host#base", "dacal_med.engines.hosts.mean_teacher.MeanTeacher"),
    ):
        found = tiny_trainer(host=make_host("mic", **option)).describe()
        assert found[place] == value != usual[place]


@pytest.mark.parametrize("dims", [2, 3])
def test_without_mixing_the_meta_step_looks_ahead_on_target_images_and_asks_whole_held_out_ones(dims):
    trainer = tiny_trainer(dims=dims, host=make_host("mean_teacher"), max_epochs=2, epoch_length=1, meta={"every": 1})
    inner, outer, batches = [], [], []
    step, terms = trainer.meta.step, trainer.host.terms

    def watched_step(batch, outer_loss, *rest):
        inner.append(batch)
        outer_loss(lambda image: (outer.append(image), step.network(image))[1])
        return step(batch, outer_loss, *rest)

    def watched_terms(batch, *rest):
        batches.append(batch)
        return terms(batch, *rest)

    trainer.meta.step, trainer.host.terms = watched_step, watched_terms
    trainer.run()
    assert torch.equal(inner[0].image, batches[-1].target_image)
    assert torch.equal(outer[0], batches[-1].held_out.image)
