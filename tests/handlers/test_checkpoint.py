# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact continuation, refusal of foreign or damaged files, interruption."""

from __future__ import annotations

import contextlib
import os
import resource
import signal

import pytest
import torch
from ignite.engine import Events

from dacal_med.handlers import ResumableCheckpoint
from dacal_med.handlers.checkpoint import KEPT, PATTERN
from dacal_med.io.errors import InputError
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
        ".lock",
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
        ({"complement": "none"}, "host#complement: the checkpoint has"),
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


def test_what_is_resumed_from_those_set_aside_is_kept(tmp_path):
    run_to(tmp_path)
    (tmp_path / "previous").mkdir()
    older = (tmp_path / "checkpoint_iteration=9.pt").rename(tmp_path / "previous" / "checkpoint_iteration=9.pt")
    run_to(tmp_path, resume=str(older), stop_after=4)
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


def test_a_flipped_bit_is_found(tmp_path, caplog):
    """torch.load would take the damaged weight for a good one."""
    run_to(tmp_path, stop_after=4)
    newest = tmp_path / "checkpoint_iteration=9.pt"
    content = bytearray(newest.read_bytes())
    weight = next(iter(torch.load(newest, weights_only=True)["network"].values())).numpy().tobytes()
    content[content.index(weight) + 2] ^= 1
    newest.write_bytes(content)
    torch.load(newest, weights_only=True)
    resumed = run_to(tmp_path, resume=True)
    assert "is damaged" in caplog.text
    assert resumed.state.iteration == 12
    assert torch.equal(weights(resumed), weights(run_to(tmp_path / "whole")))


def test_auto_continues_or_starts_anew(tmp_path):
    whole = run_to(tmp_path, resume="auto", stop_after=3)
    assert whole.state.iteration == 6
    resumed = run_to(tmp_path, resume="auto")
    assert torch.equal(weights(resumed), weights(run_to(tmp_path / "whole")))


def test_a_single_kept_checkpoint_is_there_while_the_next_is_written(tmp_path, monkeypatch):
    trainer = tiny_trainer(max_epochs=4)
    ResumableCheckpoint(tmp_path, n_saved=1).attach(trainer)
    there = []
    save = torch.save

    def spy(*args, **kwargs):
        there.append(sorted(path.name for path in tmp_path.glob(PATTERN)))
        return save(*args, **kwargs)

    monkeypatch.setattr(torch, "save", spy)
    trainer.run()
    assert there == [[], *[[f"checkpoint_iteration={n}.pt"] for n in (3, 6, 9)]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoint_iteration=12.pt"]


def test_what_a_killed_process_left_half_written_goes(tmp_path):
    run_to(tmp_path, stop_after=3)
    (tmp_path / ".abc.tmp").write_bytes(b"half")
    run_to(tmp_path, resume=True)
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


def test_a_real_write_error_of_torch_keeps_what_was_saved(tmp_path):
    """A limit of the file's size in place of a full disk: torch tells it as a RuntimeError."""
    trainer = tiny_trainer(max_epochs=4)
    ResumableCheckpoint(tmp_path).attach(trainer)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    @trainer.on(Events.EPOCH_STARTED(once=2))
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    try:
        with pytest.raises(InputError, match=r"cannot write .* MiB free\).*earlier checkpoints are intact"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoint_iteration=3.pt"]
    torch.load(tmp_path / "checkpoint_iteration=3.pt", weights_only=True)


def test_an_interruption_in_the_last_iteration_of_an_epoch_leaves_out_nothing_of_it(tmp_path):
    """What others do at the end of an epoch, such as the measurement after the warm-up, is done before the stop."""
    trainer = tiny_trainer(max_epochs=4)
    done = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: done.append(engine.state.epoch))
    ResumableCheckpoint(tmp_path, interval=3).attach(trainer)
    trainer.add_event_handler(Events.ITERATION_STARTED(once=6), lambda _: os.kill(os.getpid(), signal.SIGTERM))
    trainer.run()
    assert done == [1, 2]
    assert trainer.state.iteration == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoint_iteration=6.pt"]


def test_repeated_sigterm_is_one_and_the_last_iteration_ends_the_run(tmp_path):
    trainer = tiny_trainer(max_epochs=4)
    ResumableCheckpoint(tmp_path).attach(trainer)

    @trainer.on(Events.ITERATION_STARTED(once=12))
    def twice():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    completed = []
    trainer.add_event_handler(Events.COMPLETED, lambda: completed.append(trainer.should_terminate))
    trainer.run()
    assert completed == [False]
    assert trainer.state.iteration == 12


def test_counters_of_skipped_steps_survive(tmp_path):
    trainer = run_to(tmp_path, stop_after=3)
    trainer.state.skipped, trainer.state.meta_skipped = 2, 1
    ResumableCheckpoint(tmp_path).save(trainer)
    resumed = run_to(tmp_path, resume=True)
    assert (resumed.skipped, resumed.state.meta_skipped) == (2, 1)


def test_the_number_of_parts_may_change_and_the_batch_may_not(tmp_path):
    run_to(tmp_path, stop_after=3)
    assert run_to(tmp_path, resume=True, accumulate=2).state.iteration == 12
    with pytest.raises(InputError, match="batch: the checkpoint has '2', this run has '4'"):
        run_to(tmp_path, resume=True, batch_size=4)
