# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints whose content no run saves, numbers that are not finite, and what lies in the folder's way."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from dacal_med.engines.trainer import NonFiniteLossError
from dacal_med.handlers import ResumableCheckpoint
from dacal_med.handlers.checkpoint import PATTERN
from dacal_med.io.errors import InputError
from tests.engines.builders import tiny_network, tiny_trainer, weights


def source_only(folder, *, resume=False, interval=1, **options):
    trainer = tiny_trainer(host="source_only", labeller="hard", **{"warmup_epochs": 0, **options})
    ResumableCheckpoint(folder, resume=resume, interval=interval).attach(trainer)
    return trainer


def names(folder):
    return sorted(path.name for path in folder.glob(PATTERN))


@pytest.mark.parametrize("part", ["network", "optimizer"])
def test_a_newest_checkpoint_with_wrong_content_is_passed_over_like_a_damaged_one(tmp_path, caplog, part):
    source_only(tmp_path).run()
    newest = tmp_path / "checkpoint_iteration=9.pt"
    state = torch.load(newest, weights_only=True)
    values = state["network"] if part == "network" else state["optimizer"]["state"][0]
    values[next(name for name in values if name != "step")].mul_(math.nan)
    torch.save(state, newest)
    resumed = source_only(tmp_path, resume=True)
    resumed.run()
    assert "are not finite, wanted finite ones; trying the one before" in caplog.text
    assert resumed.state.iteration == 9
    assert torch.isfinite(weights(resumed)).all()
    assert names(tmp_path / "previous") == [newest.name]


def test_where_all_are_wrong_the_first_is_told(tmp_path):
    source_only(tmp_path).run()
    for path in tmp_path.glob(PATTERN):
        state = torch.load(path, weights_only=True)
        state["trainer"]["iteration"] = -1
        torch.save(state, path)
    message = r"none of the 2 .* can be read; the newest: .*=9.pt: trainer.iteration: found -1, wanted a whole number"
    with pytest.raises(InputError, match=message):
        source_only(tmp_path, resume=True).run()
    assert len(names(tmp_path)) == 2


def test_a_learning_rate_that_was_a_whole_number_may_have_become_a_fraction(tmp_path):
    def trainer(resume):
        whole = source_only(tmp_path, resume=resume, make_optimizer=lambda p, lr: torch.optim.SGD(p, lr=1))
        whole.add_event_handler(Events.EPOCH_STARTED, lambda e: e.optimizer.param_groups[0].update(lr=1e-3))
        return whole

    trainer(False).run()
    trainer(True).run()


@pytest.mark.parametrize("where", ["weights", "moments", "statistics"])
def test_what_is_not_finite_is_not_saved_and_stops_the_run(tmp_path, where):
    trainer = source_only(tmp_path, make_network=lambda dims: tiny_network(dims, norm="batch"))

    @trainer.on(Events.ITERATION_COMPLETED(once=6))
    def spoil(engine):
        parameter = next(engine.network.parameters())
        spoilt = {
            "weights": parameter.data,
            "moments": engine.optimizer.state[parameter]["exp_avg_sq"],
            "statistics": next(b for name, b in engine.network.named_buffers() if name.endswith("running_var")),
        }
        spoilt[where].view(-1)[0] = math.inf

    message = r"iteration 6: weights .* not finite \((network|optimizer)\..*resume from the last good one, .*=3.pt"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.run()
    assert names(tmp_path) == ["checkpoint_iteration=3.pt"]


def test_constants_that_are_infinite_by_design_are_saved_and_read(tmp_path):
    def masked(dims):
        network = tiny_network(dims)
        network.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        return network

    source_only(tmp_path, make_network=masked).run()
    resumed = source_only(tmp_path, make_network=masked, resume=True)
    resumed.run()
    assert names(tmp_path) == ["checkpoint_iteration=6.pt", "checkpoint_iteration=9.pt"]


@pytest.mark.parametrize("first_bad", [1, 5])
def test_too_many_skipped_steps_name_the_last_good_checkpoint(tmp_path, first_bad):
    trainer = source_only(tmp_path, max_skipped=2)

    @trainer.on(Events.ITERATION_STARTED)
    def spoil(engine):
        if engine.state.iteration >= first_bad:
            engine.state.batch["source"]["image"].fill_(math.nan)

    message = "start anew: no checkpoint was saved" if first_bad == 1 else r"resume from the last good one, .*=3.pt"
    with pytest.raises(NonFiniteLossError, match=f"2 iterations in a row .*{message}$"):
        trainer.run()


def test_a_file_called_previous_is_left_alone_and_told(tmp_path):
    source_only(tmp_path).run()
    (tmp_path / "previous").write_text("mine")
    with pytest.raises(InputError, match=r"cannot move the checkpoints .*previous: File exists; wanted a folder"):
        source_only(tmp_path).run()
    assert (tmp_path / "previous").read_text() == "mine"
    assert len(names(tmp_path)) == 2


def test_folders_and_pipes_named_like_checkpoints_are_none(tmp_path):
    (tmp_path / "checkpoint_iteration=2.pt").mkdir()
    os.mkfifo(tmp_path / "checkpoint_iteration=99.pt")
    source_only(tmp_path).run()
    resumed = source_only(tmp_path, resume=True)
    resumed.run()
    assert resumed.last_checkpoint == tmp_path / "checkpoint_iteration=9.pt"
    assert {"checkpoint_iteration=2.pt", "checkpoint_iteration=99.pt"} < set(names(tmp_path))
    assert not (tmp_path / "previous").exists()


def test_a_checkpoint_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.match(PATTERN):
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    trainer = source_only(tmp_path)
    trainer.add_event_handler(Events.EPOCH_STARTED(once=3), lambda: monkeypatch.setattr(Path, "unlink", refuse))
    with pytest.raises(InputError, match=r"cannot remove the old checkpoint .*=3.pt: Permission denied"):
        trainer.run()
