# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Domains that an iteration does not use are not loaded, and what the others hold stays the same."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from ignite.engine import Events

from dacal_med.data import PairedDataset, PairedLoader
from tests.engines.builders import blobs, tiny_trainer


class Counting(list):
    """Items that count how often one is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_those_of_a_full_loader_without_what_is_not_needed(workers):
    def loader(count):
        data = PairedDataset(blobs(5, 2, 1.0, 1), blobs(3, 2, -1.0, 2), blobs(2, 2, 1.0, 3))
        return PairedLoader(data, 2, 4, num_workers=count)

    whole, part = loader(0), loader(workers)
    part.load_only(lambda iteration: ("source", "target") if iteration >= 2 else ("source",))
    for number, (a, b) in enumerate(zip(islice(whole, 5), islice(part, 5), strict=True)):
        wanted = (
            {"source", "target", "held_out"} if number == 0 else {"source"} | ({"target"} if number >= 2 else set())
        )
        assert set(b) == wanted
        assert all(torch.equal(a[domain]["image"], b[domain]["image"]) for domain in b)


def test_a_run_reads_only_what_it_uses():
    trainer = tiny_trainer(max_epochs=4, settle_epochs=1, meta={"every": 2})
    data = trainer.data_loader.dataset
    data.datasets = {domain: Counting(items) for domain, items in data.datasets.items()}
    batches = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: batches.append(set(engine.state.batch)))
    trainer.run()
    # Warm-up and settling are 6 iterations; then every second one takes a meta-step.
    assert [("target" in batch, "held_out" in batch) for batch in batches] == [
        *[(True, True)],  # the first shows everything, so that what does not fit is found at once
        *[(False, False)] * 5,
        *[(True, True), (True, False)] * 3,
    ]
    assert {domain: items.reads for domain, items in data.datasets.items()} == {
        "source": 24,
        "target": 14,
        "held_out": 8,
    }


def test_a_host_without_target_reads_none():
    trainer = tiny_trainer(host="source_only", labeller="hard")
    data = trainer.data_loader.dataset
    data.datasets = {domain: Counting(items) for domain, items in data.datasets.items()}
    trainer.run()
    assert {domain: items.reads for domain, items in data.datasets.items()} == {
        "source": 18,
        "target": 2,
        "held_out": 2,
    }
