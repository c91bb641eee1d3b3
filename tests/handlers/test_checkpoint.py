# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact continuation, refusal of foreign or damaged files, interruption."""

from __future__ import annotations

import contextlib
import os
import signal

import pytest
import torch
from ignite.engine import Events

from dacal_med.errors import InputError
from dacal_med.handlers import ResumableCheckpoint
from dacal_med.handlers.checkpoint import KEPT, PATTERN
from tests.engines.builders import tiny_trainer, weights


def run_to(folder, *, stop_after=None, resume=False, dims=2, **options):
    """Run a tiny trainer with checkpoints; ``stop_after`` ends it like a crash after that epoch."""
    trainer = tiny_trainer(dims, max_epochs=4, meta={"every": 1}, **options)
    ResumableCheckpoint(folder, resume=resume).attach(trainer)
    if stop_after is not None:

        def crash(engine):
            if engine.state.epoch == stop_after:
                raise ZeroDivisionError

        trainer.add_event_handler(Events.EPOCH_STARTED, crash)
    with contextlib.suppress(ZeroDivisionError):
        trainer.run()
    return trainer


@pytest.mark.parametrize("dims", [2, 3])
def test_a_resumed_run_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, dims):
    whole = run_to(tmp_path / "whole", dims=dims)
    run_to(tmp_path / "parts", dims=dims, stop_after=3)
    resumed = run_to(tmp_path / "parts", dims=dims, resume=True)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.state.iteration == whole.state.iteration == 12
    for mine, other in zip(
        resumed.optimizer.state_dict()["state"].values(), whole.optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(other[key])) for key in mine)


def test_keeps_the_newest_files_only(tmp_path):
    run_to(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "checkpoint_iteration=12.pt",
        "checkpoint_iteration=9.pt",
    ]
    run_to(tmp_path / "again", resume=False)
    assert not list(tmp_path.glob("*.tmp"))


def test_loads_without_unpickling(tmp_path):
    run_to(tmp_path)
    state = torch.load(tmp_path / "checkpoint_iteration=12.pt", weights_only=True)
    assert {"description", "trainer", "network", "optimizer", "teacher", "labeller", "meta_optimizer"} <= set(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labeller": "soft"}, "labeller: the checkpoint has"),
        ({"complement": "none"}, "host: the checkpoint has"),
        ({"seed": 5}, "seed: the checkpoint has '0', this run has '5'"),
        ({"warmup_epochs": 2}, "warmup_epochs"),
        ({"epoch_length": 2}, "epoch_length"),
        ({"max_epochs": 5}, "max_epochs: the checkpoint has '4', this run has '5'"),
    ],
)
def test_refuses_the_checkpoint_of_another_configuration(tmp_path, options, message):
    run_to(tmp_path)
    trainer = tiny_trainer(**{"max_epochs": 4, **options})
    ResumableCheckpoint(tmp_path, resume=True).attach(trainer)
    before = weights(trainer).clone()
    with pytest.raises(InputError, match=message):
        trainer.run()
    assert torch.equal(weights(trainer), before)


def test_falls_back_to_the_older_file_if_the_newest_is_damaged(tmp_path, caplog):
    whole = run_to(tmp_path / "whole")
    run_to(tmp_path / "parts", stop_after=4)
    newest = tmp_path / "parts" / "checkpoint_iteration=9.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = run_to(tmp_path / "parts", resume=True)
    assert "checkpoint_iteration=9.pt is not a readable checkpoint" in caplog.text
    assert torch.equal(weights(resumed), weights(whole))
    assert [p.name for p in (tmp_path / "parts" / "previous").iterdir()] == ["checkpoint_iteration=9.pt"]


def test_resuming_from_an_older_file_leaves_no_newer_one_behind(tmp_path):
    run_to(tmp_path)
    older = str(tmp_path / "checkpoint_iteration=9.pt")
    run_to(tmp_path, resume=older, stop_after=4)
    assert [p.name for p in tmp_path.glob(PATTERN)] == ["checkpoint_iteration=9.pt"]
    assert [p.name for p in (tmp_path / "previous").iterdir()] == ["checkpoint_iteration=12.pt"]


def test_nothing_to_resume_from_is_an_error(tmp_path):
    with pytest.raises(InputError, match="found no checkpoint_iteration"):
        run_to(tmp_path, resume=True)
    (tmp_path / "checkpoint_iteration=3.pt").write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="none of the 1 checkpoints"):
        run_to(tmp_path, resume=True)
    with pytest.raises(InputError, match="no checkpoint at"):
        run_to(tmp_path, resume=str(tmp_path / "absent.pt"))


def test_a_fresh_start_keeps_the_earlier_run_aside(tmp_path):
    run_to(tmp_path)
    run_to(tmp_path, seed=1)
    assert len(list(tmp_path.glob(PATTERN))) == 2
    assert len(list((tmp_path / "previous").glob(PATTERN))) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_saves_and_the_rest_gives_the_same_result(tmp_path, number):
    whole = run_to(tmp_path / "whole")
    trainer = tiny_trainer(max_epochs=4, meta={"every": 1})
    ResumableCheckpoint(tmp_path / "parts").attach(trainer)
    trainer.add_event_handler(
        Events.ITERATION_STARTED,
        lambda engine: os.kill(os.getpid(), number) if engine.state.iteration == 5 else None,
    )
    before = signal.getsignal(number)
    trainer.run()
    assert trainer.state.iteration == 5  # in the middle of the second epoch
    assert signal.getsignal(number) is before
    assert (tmp_path / "parts" / "checkpoint_iteration=5.pt").is_file()
    assert torch.equal(weights(run_to(tmp_path / "parts", resume=True)), weights(whole))


def test_a_second_interruption_stops_at_once(tmp_path):
    trainer = tiny_trainer(max_epochs=4)
    ResumableCheckpoint(tmp_path).attach(trainer)

    def twice(engine):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    trainer.add_event_handler(Events.ITERATION_STARTED, twice)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert trainer.state.iteration == 1


def test_unwritable_folder_and_bad_numbers_are_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="cannot write checkpoints to"):
        run_to(tmp_path / "file" / "checkpoints")
    with pytest.raises(InputError, match="n_saved=0"):
        ResumableCheckpoint(tmp_path, n_saved=0)
    with pytest.raises(InputError, match="interval=0"):
        ResumableCheckpoint(tmp_path, interval=0)


def test_a_full_disk_names_the_folder_and_keeps_what_was_saved(tmp_path, monkeypatch):
    trainer = tiny_trainer(max_epochs=4)
    ResumableCheckpoint(tmp_path).attach(trainer)
    save = torch.save

    def full(*args, **kwargs):
        if trainer.state.epoch == 2:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left on device; earlier checkpoints are intact"):
        trainer.run()
    assert [p.name for p in tmp_path.glob(PATTERN)] == ["checkpoint_iteration=3.pt"]
    torch.load(tmp_path / "checkpoint_iteration=3.pt", weights_only=True)


def test_a_forked_run_is_the_run_that_warmed_up_itself(tmp_path):
    """Hosts and labellers play no part in warm-up and settling, so that one run of it serves all."""
    trunk = tiny_trainer(max_epochs=4, host="source_only", settle_epochs=1)
    ResumableCheckpoint(tmp_path / "trunk", keep_source_end=True).attach(trunk)
    trunk.run()
    for options in ({"meta": {"every": 1}}, {"labeller": "hard", "complement": "none"}):
        alone = tiny_trainer(max_epochs=4, settle_epochs=1, **options)
        alone.run()
        forked = tiny_trainer(max_epochs=4, settle_epochs=1, **options)
        begun = []
        ResumableCheckpoint(tmp_path / "forked", fork_from=str(tmp_path / "trunk" / KEPT)).attach(forked)
        forked.add_event_handler(Events.EPOCH_STARTED, lambda engine, begun=begun: begun.append(engine.state.epoch))
        forked.run()
        assert begun == [3, 4]
        assert torch.equal(weights(forked), weights(alone))


@pytest.mark.parametrize(
    ("kept_of", "forked", "message"),
    [
        ({"settle_epochs": 1}, {"settle_epochs": 2}, "is of iteration 6, wanted 9"),
        ({"settle_epochs": 1}, {"settle_epochs": 1, "seed": 5}, "seed: the checkpoint has '0', this run has '5'"),
    ],
)
def test_forks_from_another_warm_up_are_refused(tmp_path, kept_of, forked, message):
    trunk = tiny_trainer(max_epochs=4, **kept_of)
    ResumableCheckpoint(tmp_path / "trunk", keep_source_end=True).attach(trunk)
    trunk.run()
    trainer = tiny_trainer(max_epochs=4, **forked)
    ResumableCheckpoint(tmp_path / "forked", fork_from=str(tmp_path / "trunk" / KEPT)).attach(trainer)
    with pytest.raises(InputError, match=message):
        trainer.run()


def test_a_missing_fork_warms_up_itself(tmp_path, caplog):
    trainer = tiny_trainer(max_epochs=4)
    ResumableCheckpoint(tmp_path, fork_from=str(tmp_path / "nowhere.pt")).attach(trainer)
    trainer.run()
    alone = tiny_trainer(max_epochs=4)
    alone.run()
    assert torch.equal(weights(trainer), weights(alone))
    assert "does its own warm-up" in caplog.text
