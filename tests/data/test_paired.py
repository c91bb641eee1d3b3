# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The paired loader: what a draw holds depends on nothing but the seed and its number."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ignite.engine import Engine, Events
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, Lambdad, RandShiftIntensityd, RandSpatialCropd, RandSpatialCropSamplesd

from dacal_med.data.paired import PairedDataset, PairedLoader


def items(count: int, start: float, labelled: bool = True) -> list[dict[str, Any]]:
    """Images whose values name them."""
    cases = [{"image": MetaTensor(torch.full((1, 4, 5), start + n)), "id": f"case {n}"} for n in range(count)]
    return [case | {"label": torch.zeros(1, 4, 5)} if labelled else case for case in cases]


def dataset(seed: int = 3, sizes: tuple[int, int, int] = (5, 3, 2), random: bool = True) -> PairedDataset:
    def shift() -> RandShiftIntensityd | None:
        return RandShiftIntensityd("image", 0.4, prob=1.0) if random else None

    return PairedDataset(
        items(sizes[0], 0.0),
        items(sizes[1], 100.0, labelled=False),
        items(sizes[2], 200.0),
        source_transform=shift(),
        target_transform=shift(),
        held_out_transform=shift(),
        seed=seed,
    )


def values(batches: list[dict[str, dict[str, torch.Tensor]]]) -> torch.Tensor:
    """One row per draw, one column per domain."""
    rows = [torch.stack([b[d]["image"][:, 0, 0, 0] for d in ("source", "target", "held_out")], 1) for b in batches]
    return torch.cat(rows)


def take(loader: PairedLoader, count: int) -> torch.Tensor:
    return values(list(islice(loader, count)))


def test_batches_are_nested_plain_tensors() -> None:
    batch = next(iter(PairedLoader(dataset(), 2)))
    assert {domain: set(part) for domain, part in batch.items()} == {
        "source": {"image", "label"},
        "target": {"image"},
        "held_out": {"image", "label"},
    }
    for part in batch.values():
        for tensor in part.values():
            assert type(tensor) is torch.Tensor
            assert tensor.shape == (2, 1, 4, 5)


def test_held_out_may_be_absent() -> None:
    assert set(PairedDataset(items(2, 0.0), items(2, 9.0))[0]) == {"source", "target"}


@given(st.integers(1, 7), st.integers(1, 7), st.integers(0, 3))
def test_every_pass_sees_every_image_once(sources: int, targets: int, seed: int) -> None:
    data = dataset(seed, (sources, targets, 1))
    for domain, count in (("source", sources), ("target", targets)):
        for turn in range(3):
            seen = [data.case_index(domain, turn * count + k) for k in range(count)]
            assert sorted(seen) == list(range(count))
    assert len(data) == max(sources, targets)


def test_order_changes_between_passes_seeds_and_domains() -> None:
    def order(seed: int, domain: str, turn: int) -> tuple[int, ...]:
        data = dataset(seed, (20, 20, 20))
        return tuple(data.case_index(domain, turn * 20 + k) for k in range(20))

    orders = {order(s, d, t) for s in (0, 1) for d in ("source", "target", "held_out") for t in (0, 1)}
    assert len(orders) == 12


def test_a_draw_repeats_in_any_order_and_augmentations_differ() -> None:
    data = dataset()
    forward = [data[k]["source"]["image"] for k in range(12)]
    backward = [data[k]["source"]["image"] for k in reversed(range(12))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    shifts = [float(image[0, 0, 0]) % 1 for image in forward]
    assert len(set(shifts)) == 12


def test_domains_are_augmented_independently() -> None:
    shifts = values([next(iter(PairedLoader(dataset(), 4)))]) - values(
        [next(iter(PairedLoader(dataset(random=False), 4)))]
    )
    assert not torch.allclose(shifts[:, 0], shifts[:, 1])
    assert not torch.allclose(shifts[:, 0], shifts[:, 2])


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
def test_ranks_share_what_one_rank_would_see(world_size: int, batch_size: int, iterations: int) -> None:
    alone = take(PairedLoader(dataset(), batch_size * world_size, rank=0, world_size=1), iterations)
    parts = [
        take(PairedLoader(dataset(), batch_size, rank=r, world_size=world_size), iterations) for r in range(world_size)
    ]
    together = torch.stack([part.reshape(iterations, batch_size, 3) for part in parts], dim=1).reshape(-1, 3)
    assert torch.equal(alone, together)


def test_workers_change_nothing_and_restart_anywhere() -> None:
    alone = take(PairedLoader(dataset(), 2), 8)
    loader = PairedLoader(dataset(), 2, num_workers=2)
    assert torch.equal(take(loader, 4), alone[:8])
    loader.start_at(3)
    assert torch.equal(take(loader, 5), alone[6:])


def test_iterating_goes_on_where_it_stopped() -> None:
    whole = take(PairedLoader(dataset(), 2), 6)
    loader = PairedLoader(dataset(), 2)
    assert torch.equal(torch.cat([take(loader, 2), take(loader, 4)]), whole)
    assert loader.iteration == 6


def test_engine_sees_one_sequence_over_epochs_and_after_resuming() -> None:
    def run(engine: Engine, loader: PairedLoader, epochs: int) -> None:
        engine.run(loader, max_epochs=epochs)

    def trainer(seen: list[Any], stop: int | None = None) -> Engine:
        engine = Engine(lambda _, batch: seen.append(batch))

        @engine.on(Events.ITERATION_COMPLETED)
        def maybe_stop(running: Engine) -> None:
            if running.state.iteration == stop:
                running.terminate()

        return engine

    unbroken: list[Any] = []
    run(trainer(unbroken), PairedLoader(dataset(), 2, epoch_length=3), 4)
    assert len(unbroken) == 12
    assert torch.equal(values(unbroken), take(PairedLoader(dataset(), 2), 12))

    first: list[Any] = []
    stopped = trainer(first, stop=5)  # in the middle of the second epoch
    run(stopped, PairedLoader(dataset(), 2, epoch_length=3), 4)
    assert len(first) == 5

    second: list[Any] = []
    resumed = trainer(second)
    resumed.load_state_dict({"iteration": 5, "max_epochs": 4, "epoch_length": 3})
    loader = PairedLoader(dataset(), 2, epoch_length=3)
    resumed.add_event_handler(Events.STARTED, lambda engine: loader.start_at(engine.state.iteration))
    resumed.run(loader)
    assert torch.equal(values(first + second), values(unbroken))


def test_cached_items_are_never_changed() -> None:
    def spoil(image: torch.Tensor) -> torch.Tensor:
        image += 1.0
        return image

    cached = CacheDataset(items(2, 0.0), transform=None, progress=False)
    data = PairedDataset(cached, items(2, 100.0), source_transform=Lambdad("image", spoil))
    assert {float(data[k]["source"]["image"].max()) for k in range(8)} == {1.0, 2.0}


def test_crops_as_one_sample_lists() -> None:
    crop = RandSpatialCropSamplesd(["image", "label"], (2, 2), num_samples=1, random_size=False)
    data = PairedDataset(items(2, 0.0), items(2, 9.0), source_transform=Compose([crop]))
    assert data[0]["source"]["label"].shape == (1, 2, 2)
    crops = RandSpatialCropSamplesd(["image", "label"], (2, 2), num_samples=2, random_size=False)
    with pytest.raises(ValueError, match="source transform gave 2 samples; wanted one"):
        _ = PairedDataset(items(2, 0.0), items(2, 9.0), source_transform=crops)[0]


def test_unequal_shapes_are_named_without_voxels() -> None:
    target = [{"image": torch.zeros(1, 4, 5)}, {"image": torch.zeros(1, 4, 6)}]
    loader = PairedLoader(PairedDataset(items(2, 0.0), target), 2)
    with pytest.raises(ValueError, match=r"target images of a batch have the shapes \[\(1, 4, 5\), \(1, 4, 6\)\]"):
        next(iter(loader))


def test_making_an_iterator_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    next(iter(PairedLoader(dataset(), 2)))
    assert torch.equal(torch.get_rng_state(), before)


def test_default_epoch_is_a_nominal_pass() -> None:
    assert len(PairedLoader(dataset(), 2)) == 3
    assert len(PairedLoader(dataset(), 2, rank=0, world_size=2)) == 2
    assert len(PairedLoader(dataset(), 2, epoch_length=7)) == 7


def test_wrong_calls() -> None:
    with pytest.raises(ValueError, match="target data set is empty"):
        PairedDataset(items(1, 0.0), [])
    with pytest.raises(TypeError, match="wanted a dictionary with 'image'"):
        _ = PairedDataset([{"label": 1}], items(1, 0.0))[0]
    with pytest.raises(IndexError, match="draw -1"):
        _ = dataset()[-1]
    for wrong in ({"batch_size": 0}, {"epoch_length": 0}, {"num_workers": -1}, {"rank": 1, "world_size": 1}):
        with pytest.raises(ValueError, match="wanted positive sizes"):
            PairedLoader(dataset(), **wrong)
    with pytest.raises(ValueError, match="iteration is -1"):
        PairedLoader(dataset()).start_at(-1)


def test_random_crops_of_a_label_and_its_image_agree() -> None:
    ramp = torch.arange(20.0).reshape(1, 4, 5)
    source = [{"image": ramp, "label": ramp.clone()}]
    crop = RandSpatialCropd(["image", "label"], (2, 2), random_size=False)
    data = PairedDataset(source, items(1, 0.0), source_transform=crop)
    for draw in range(6):
        part = data[draw]["source"]
        assert torch.equal(part["image"], part["label"])


def test_warm_up_draws_have_their_own_source_transform():
    data = [{"image": torch.zeros(1, 2, 2), "label": torch.zeros(1, 2, 2)} for _ in range(3)]

    def mark(value):
        return lambda item: {**item, "image": item["image"] + value}

    dataset = PairedDataset(
        data,
        data,
        data,
        source_transform=mark(1.0),
        held_out_transform=mark(2.0),
        warmup_transform=mark(5.0),
        warmup_draws=4,
    )
    assert [float(dataset[k]["source"]["image"].mean()) for k in range(6)] == [5, 5, 5, 5, 1, 1]
    assert [float(dataset[k]["held_out"]["image"].mean()) for k in range(6)] == [2] * 6
    assert [float(dataset[k]["target"]["image"].mean()) for k in range(6)] == [0] * 6
    with pytest.raises(ValueError, match="warmup_draws is -1"):
        PairedDataset(data, data, warmup_draws=-1)
