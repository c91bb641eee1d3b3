# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo: they stay together, and do what one process with both batches does."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ignite.engine import Events

from dacal_med.engines import CalibrationEvaluator, parallel
from dacal_med.engines.parallel import average, is_main, world_size
from dacal_med.handlers import AdaptationReport, EvaluationReport
from tests.engines.builders import blobs, tiny_network, tiny_trainer, weights

NAMES = ["background", "one", "two"]
SUBSETS = {"one": ["one"]}


def grouped(data):
    """Cases in two groups, one of which spans both ranks."""
    return [{**item, "group": group} for item, group in zip(data, "aba", strict=True)]


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
        adapted.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"]))
        adapted.run()
        result["adapted"] = weights(adapted)
        result["losses"] = torch.tensor(losses)

        evaluator = CalibrationEvaluator("cpu", grouped(data), tiny_network(2), NAMES, class_subsets=SUBSETS)
        evaluator.run()
        result["scores"] = evaluator.scores
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
    data = grouped(blobs(3, 2, -1.0, 9))
    evaluator = CalibrationEvaluator("cpu", data, tiny_network(2), NAMES, class_subsets=SUBSETS)
    evaluator.run()
    for rank in ranks:
        for group in "ab":
            found, wanted = (scores["per_group"][group] for scores in (rank["scores"], evaluator.scores))
            assert (found["cases"], found["dice"]) == (wanted["cases"], wanted["dice"])
        assert rank["scores"]["class_subsets"] == evaluator.scores["class_subsets"]
        assert rank["scores"]["dice"] == evaluator.scores["dice"]
        assert rank["scores"]["ece"] == pytest.approx(evaluator.scores["ece"], abs=1e-12)
        assert rank["scores"]["per_case"] == evaluator.scores["per_case"]


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
