# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo: they stay together, and do what one process with both batches does."""

from __future__ import annotations

import itertools
import os
import signal
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events

from dacal_med.core.mixing import BoxMask
from dacal_med.engines import CalibrationEvaluator, TemperatureFeedback, dice_cross_entropy, make_host, parallel
from dacal_med.engines.parallel import any_rank, average, is_main, world_size
from dacal_med.engines.trainer import NonFiniteLossError
from dacal_med.handlers import AdaptationReport, EvaluationReport, ResumableCheckpoint
from tests.engines.builders import blobs, tiny_network, tiny_trainer, weights

NAMES = ["background", "one", "two"]
PARTS = {"class_subsets": {"one": ["one"]}, "regions": {"either": ["one", "two"]}}


def grouped(data):
    """Cases in two groups, one of which spans both ranks."""
    return [{**item, "group": group} for item, group in zip(data, "aba", strict=False)]


# Everything takes part: both mixes, soft labels, meta-step and feedback, the Dice loss over the batch, clipping.
# Plain gradient descent: AdamW would turn the rounding of tiny gradients into steps.
EVERYTHING = {
    "complement": "same",
    "meta": {"every": 1, "learning_rate": 0.01},
    "truth_loss_function": dice_cross_entropy,
    "max_gradient_norm": 1.0,
    "make_optimizer": torch.optim.SGD,
}


def everything(dims: int, **options):
    """A run in which box masks, hidden blocks and everything else are drawn."""
    dacs = make_host("dacs", complement="same", mask_generator=BoxMask())
    host = make_host("mic", base=dacs, block_size=4)
    feedback = TemperatureFeedback(blobs(3, dims, 1.0, 4), highest=4.0)
    return tiny_trainer(dims, host=host, feedback=feedback, **{**EVERYTHING, **options})


def bad_on_one_rank(rank: int, **options):
    """A run in whose iterations 2 and 5 one rank alone sees a loss that is not a number."""
    state = {"calls": 0}

    def loss(logits, targets, voxel_weights):
        state["calls"] += 1
        bad = rank == 1 and state["calls"] in (2, 5)
        return logits.square().mean() * (float("nan") if bad else 1.0)

    options = {"make_network": lambda dims: tiny_network(dims, norm="batch"), "loss_function": loss, **options}
    return tiny_trainer(host="source_only", labeller="hard", rank=rank, batch_size=1, **options)


def _worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        result = {}
        tensors = [torch.full((2,), float(rank)), torch.full((3,), float(rank), dtype=torch.float64)]
        average(tensors)
        result["average"] = torch.cat([t.double() for t in tensors])
        result["main"] = is_main()

        alone = tiny_trainer(
            host="source_only",
            labeller="hard",
            rank=rank,
            world_size=2,
            batch_size=1,
            make_optimizer=torch.optim.SGD,
        )
        alone.run()
        result["source_only"] = weights(alone)

        adapted = tiny_trainer(rank=rank, world_size=2, batch_size=1, meta={"every": 1, "learning_rate": 0.01})
        data = blobs(3, 2, -1.0, 9)
        evaluator = CalibrationEvaluator("cpu", data, adapted.network, NAMES)
        report = AdaptationReport(EvaluationReport(evaluator, folder), folder, Path(folder) / "model.pt")
        report.attach(adapted)
        losses = []
        adapted.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output[0]["loss"]))
        adapted.run()
        result["adapted"] = weights(adapted)
        result["losses"] = torch.tensor(losses)

        for cases in (3, 1):
            evaluator = CalibrationEvaluator("cpu", grouped(data[:cases]), tiny_network(2), NAMES, **PARTS)
            evaluator.run()
            result[f"scores_{cases}"] = evaluator.scores

        for dims in (2, 3):
            for accumulate in (1, 2):
                trainer = everything(dims, rank=rank, world_size=2, batch_size=2, accumulate=accumulate)
                trainer.run()
                result[f"everything_{dims}_{accumulate}"] = weights(trainer)

        trainer = bad_on_one_rank(rank, world_size=2)
        trainer.run()
        result["skipped"] = trainer.skipped
        # Batch-norm statistics are a rank's own.
        result["after_skips"] = torch.cat([p.detach().flatten() for p in trainer.network.parameters()])
        result["tracked"] = [int(b) for name, b in trainer.network.named_buffers() if name.endswith("tracked")]
        trainer = bad_on_one_rank(rank, world_size=2, max_skipped=1)
        try:
            trainer.run()
        except NonFiniteLossError:
            result["stopped_at"] = trainer.state.iteration

        # One rank alone gets the signal, as if the other were an iteration behind.
        trainer = tiny_trainer(rank=rank, world_size=2, batch_size=1)
        ResumableCheckpoint(Path(folder) / "checkpoints").attach(trainer)
        if rank == 1:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=4), lambda _: os.kill(os.getpid(), signal.SIGTERM))
        trainer.run()
        result["interrupted_at"], result["interrupted"] = trainer.state.iteration, weights(trainer)
        result["any_rank"] = [any_rank(rank == 1), any_rank(False)]
        torch.save(result, f"{folder}/rank{rank}.pt")
        dist.barrier()  # a rank that leaves early takes its connections from the other
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(_worker, (port, str(folder)), nprocs=2)
    return folder, [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_means_over_ranks(results):
    _, ranks = results
    assert all(rank["average"].tolist() == [0.5] * 5 for rank in ranks)
    assert [rank["main"] for rank in ranks] == [True, False]


def test_ranks_see_different_data_and_hold_the_same_weights(results):
    _, (first, second) = results
    assert not torch.equal(first["losses"], second["losses"])
    assert torch.equal(first["adapted"], second["adapted"])
    assert torch.equal(first["source_only"], second["source_only"])


def test_two_ranks_do_what_one_does_with_both_batches(results):
    _, (first, _) = results
    # Plain gradient descent: AdamW would turn the rounding of tiny gradients into steps.
    single = tiny_trainer(host="source_only", labeller="hard", batch_size=2, make_optimizer=torch.optim.SGD)
    start = weights(single).clone()
    single.run()
    moved = float((weights(single) - start).norm())
    assert moved > 1e-3
    assert float((first["source_only"] - weights(single)).norm()) < 1e-4 * moved


def test_scores_do_not_depend_on_the_number_of_ranks(results):
    _, ranks = results
    for cases in (3, 1):  # uneven shards, and a rank without a case
        data = grouped(blobs(3, 2, -1.0, 9)[:cases])
        evaluator = CalibrationEvaluator("cpu", data, tiny_network(2), NAMES, **PARTS)
        evaluator.run()
        assert evaluator.scores["regions"]["either"]["per_case"]["dice"]["n"] == cases
        for rank in ranks:
            assert repr(rank[f"scores_{cases}"]) == repr(evaluator.scores)  # to the last bit


@pytest.mark.parametrize("dims", [2, 3])
def test_two_ranks_adapt_as_one_does_with_both_batches(results, dims):
    _, ranks = results
    single = everything(dims, batch_size=4)
    start = weights(single).clone()
    single.run()
    assert float((weights(single) - start).norm()) > 1e-2
    assert float(single.labeller.log_centre) != 0.0
    for accumulate in (1, 2):
        first, second = (rank[f"everything_{dims}_{accumulate}"] for rank in ranks)
        assert torch.equal(first, second)
        assert float((first - weights(single)).abs().max()) < 1e-5


def test_ranks_skip_together(results):
    _, (first, second) = results
    assert first["skipped"] == second["skipped"] == 2
    assert torch.equal(first["after_skips"], second["after_skips"])
    # The rank whose own loss was a number forgets the images of the skipped steps too.
    assert set(first["tracked"]) == set(second["tracked"]) == {9 - 2}
    assert first["stopped_at"] == second["stopped_at"] == 2


def test_ranks_stop_after_the_same_iteration(results):
    folder, (first, second) = results
    assert first["any_rank"] == second["any_rank"] == [True, False]
    assert first["interrupted_at"] == second["interrupted_at"] == 4
    assert torch.equal(first["interrupted"], second["interrupted"])
    assert (folder / "checkpoints" / "checkpoint_iteration=4.pt").is_file()


def test_one_rank_writes(results):
    folder, _ = results
    assert (folder / "metrics.json").is_file()
    assert (folder / "model.pt").is_file()


def test_every_rank_communicates_dtypes_in_the_order_given(monkeypatch):
    """Ranks that walk them in different orders exchange buffers of different sizes, and gloo aborts."""
    dtypes = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
    seen = []
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda flat: seen.append(flat.dtype))
    for order in itertools.permutations(dtypes):
        seen.clear()
        average([torch.ones(2, dtype=dtype) for dtype in [*order, *order]])
        assert tuple(seen) == order


def test_one_process_is_its_own_main():
    assert world_size() == 1
    assert is_main()
    tensor = torch.ones(2)
    average([tensor])
    assert tensor.tolist() == [1.0, 1.0]
