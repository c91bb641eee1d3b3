# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Batches that pair a source, a target and a held-out source image, endlessly and reproducibly.

What the k-th draw holds depends on (seed, domain, k) alone: which image, and every random number of its augmentation.
So the number of workers changes nothing, W ranks of batch B see what one rank of batch W*B sees, and a run resumed at
iteration i sees what an unbroken run sees at i.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from copy import deepcopy
from typing import Any, Protocol

import ignite.distributed as idist
import numpy as np
import torch
from monai.transforms import Randomizable
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dacal_med.core.tensors import plain
from dacal_med.data.loading_process import outlive_interruptions, starting_processes
from dacal_med.io.reading import keep_voxels

Transform = Callable[[Any], Any]
KEYS = ("image", "label")
_STREAMS = {"source": 0, "target": 1, "held_out": 2}
_ORDER, _AUGMENTATION, _SAMPLING = 0, 1, 2
Draw = tuple[int, tuple[str, ...] | None]


class MapDataset(Protocol):
    """Any data set of dictionaries with a length, for example MONAI's ``CacheDataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SourceSampling(Protocol):
    """Which source image a draw takes instead of the next one in order, such as :class:`RareClassSampling`."""

    size: int
    tries: int

    def choose(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draw the index of an image, and the class for which it was taken."""
        ...

    def accepts(self, label: Any, wanted: int) -> bool:
        """Return whether the transformed item, by its label ``(1, *spatial)``, shows enough of that class."""
        ...


class PairedDataset(Dataset[dict[str, dict[str, torch.Tensor]]]):
    """One draw from each domain.

    Args:
        source: labelled items ``{"image": (ch, *spatial), "label": (1, *spatial)}``, with the deterministic transforms
            already applied.
        target: items ``{"image": ...}``; labels, if any, are passed on unchanged.
        held_out: labelled source items that ``source`` does not contain; None or empty for none.
        source_transform: random MONAI transforms of a source item, reseeded at every draw.
        target_transform: the same for the target.
        held_out_transform: the same for the held-out source.
        warmup_transform: takes the place of ``source_transform`` in the first ``warmup_draws`` draws, so that what
            belongs to the adaptation (the target's look, strong random appearance) stays out of the warm-up.
        warmup_draws: draws of the warm-up, over all ranks: iterations times batch size times ranks.
        source_sampling: chooses the source images, and has their random transforms drawn again where the result shows
            too little of what was chosen; None takes each image once per pass.
        seed: of the order of the images and of the random transforms.

    Raises:
        ValueError: a data set is empty, ``warmup_draws`` is negative, or ``source_sampling`` knows another data set.
    """

    def __init__(
        self,
        source: MapDataset,
        target: MapDataset,
        held_out: MapDataset | None = None,
        *,
        source_transform: Transform | None = None,
        target_transform: Transform | None = None,
        held_out_transform: Transform | None = None,
        warmup_transform: Transform | None = None,
        warmup_draws: int = 0,
        source_sampling: SourceSampling | None = None,
        seed: int = 0,
    ) -> None:
        datasets = {
            "source": source,
            "target": target,
            "held_out": held_out if held_out is not None and len(held_out) else None,
        }
        transforms = {"source": source_transform, "target": target_transform, "held_out": held_out_transform}
        self.datasets: dict[str, MapDataset] = {key: data for key, data in datasets.items() if data is not None}
        self.transforms = {key: transforms[key] for key in self.datasets}
        for key, data in self.datasets.items():
            if len(data) == 0:
                raise ValueError(f"the {key} data set is empty; wanted at least one item.")
        if warmup_draws < 0:
            raise ValueError(f"warmup_draws is {warmup_draws}; wanted a number from 0.")
        if source_sampling is not None and source_sampling.size != len(source):
            raise ValueError(
                f"source_sampling was made for {source_sampling.size} images; wanted the {len(source)} of the source."
            )
        self.source_sampling = source_sampling
        self.warmup_transform = warmup_transform
        self.warmup_draws = int(warmup_draws)
        self.seed = int(seed)
        self._orders: dict[str, tuple[int, np.ndarray]] = {}

    def __len__(self) -> int:
        """A nominal pass: draws until the larger of source and target has been seen once. Draws go on beyond it."""
        return max(len(self.datasets["source"]), len(self.datasets["target"]))

    def case_index(self, domain: str, draw: int) -> int:
        """Which item of a domain the draw takes; every item once per pass over the domain, unless sampling chooses.

        Args:
            domain: "source", "target" or "held_out".
            draw: any number from 0.

        Returns:
            The index into that domain's data set.
        """
        if domain == "source" and self.source_sampling is not None:
            return self._sampled(self.source_sampling, draw)[0]
        turn, position = divmod(draw, len(self.datasets[domain]))
        known = self._orders.get(domain)
        if known is None or known[0] != turn:
            rng = np.random.default_rng([self.seed, _STREAMS[domain], _ORDER, turn])
            known = (turn, rng.permutation(len(self.datasets[domain])))
            self._orders[domain] = known
        return int(known[1][position])

    def __getitem__(self, draw: int | Draw) -> dict[str, dict[str, torch.Tensor]]:
        """The draw's items, ``{"source": {"image", "label"}, "target": {"image"}, "held_out": ...}``, plain tensors.

        ``(draw, domains)`` gives those domains alone: what the others hold then does not change what they hold later.
        """
        draw, wanted = (draw, None) if isinstance(draw, int) else draw
        if draw < 0:
            raise IndexError(f"draw {draw}: wanted a number from 0.")
        domains = self.datasets if wanted is None else [domain for domain in self.datasets if domain in wanted]
        return {domain: self._item(domain, draw) for domain in domains}

    def _item(self, domain: str, draw: int) -> dict[str, torch.Tensor]:
        sampling = self.source_sampling
        if domain != "source" or sampling is None:
            return self._transformed(domain, self.case_index(domain, draw), draw)
        case, wanted = self._sampled(sampling, draw)
        item = self._transformed(domain, case, draw)
        for attempt in range(1, sampling.tries + 1):
            if sampling.accepts(item["label"], wanted):
                break
            item = self._transformed(domain, case, draw, attempt)
        return item

    def _sampled(self, sampling: SourceSampling, draw: int) -> tuple[int, int]:
        return sampling.choose(np.random.default_rng([self.seed, _STREAMS["source"], _SAMPLING, draw]))

    def _transformed(self, domain: str, case: int, draw: int, attempt: int = 0) -> dict[str, torch.Tensor]:
        """Return the item after the draw's random transforms; each attempt draws others."""
        item = self.datasets[domain][case]
        transform = self.transforms[domain]
        if domain == "source" and draw < self.warmup_draws:
            transform = self.warmup_transform
        if transform is not None:
            if isinstance(transform, Randomizable):
                entropy = [self.seed, _STREAMS[domain], _AUGMENTATION, draw, *([attempt] if attempt else [])]
                state = np.random.SeedSequence(entropy).generate_state(1)
                transform.set_random_state(seed=int(state[0]))
            # A cached item must stay as it is: crops are views, and some transforms write in place.
            item = transform(deepcopy(item))
        if isinstance(item, list):
            if len(item) != 1:
                raise ValueError(f"the {domain} transform gave {len(item)} samples; wanted one (num_samples=1).")
            item = item[0]
        if not isinstance(item, Mapping) or "image" not in item:
            raise TypeError(f"an item of {domain} is a {type(item).__name__}; wanted a dictionary with 'image'.")
        return {key: plain(item[key]) for key in KEYS if key in item}


def _collate(draws: list[dict[str, dict[str, torch.Tensor]]]) -> Any:
    """Stack draws, and say which images cannot be stacked without printing their voxels."""
    for domain, item in draws[0].items():
        for key in item:
            shapes = sorted({tuple(draw[domain][key].shape) for draw in draws})
            if len(shapes) > 1:
                raise ValueError(
                    f"the {domain} {key}s of a batch have the shapes {shapes}; wanted one shape: crop or pad to a "
                    f"fixed size in the {domain} transform."
                )
    return default_collate(draws)


class _Draws(Sampler[list[Draw]]):
    """The draws of this rank with the domains that are needed, one list per iteration, without end."""

    def __init__(self, batch_size: int, rank: int, world_size: int) -> None:
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.first_iteration = 0
        self.domains_of: Callable[[int], Collection[str]] | None = None

    def __iter__(self) -> Iterator[list[Draw]]:
        iteration = self.first_iteration
        while True:
            first = (iteration * self.world_size + self.rank) * self.batch_size
            # Everything in the first iteration of a run: what does not fit together is found before the warm-up.
            all_of_them = self.domains_of is None or iteration == 0
            domains = None if all_of_them or self.domains_of is None else tuple(self.domains_of(iteration))
            yield [(draw, domains) for draw in range(first, first + self.batch_size)]
            iteration += 1


class PairedLoader:
    """Endless batches of a :class:`PairedDataset`, in nested dictionaries ``{"source": {"image": (B, ch, *spatial)}}``.

    Iterating goes on where the last iteration stopped, so that an Ignite engine sees one unbroken sequence however
    often it asks for an iterator; ``start_at`` moves to any iteration, as a resumed run must. Iterate once at a time.

    Args:
        dataset: what to draw from.
        batch_size: draws per rank and iteration.
        epoch_length: iterations that an engine shall call an epoch; None for a nominal pass over all ranks together.
        num_workers: loading processes; the batches do not depend on it.
        pin_memory: page-locked batches; None for where CUDA is present.
        rank: this process; None to ask ``ignite.distributed``.
        world_size: number of processes; None to ask ``ignite.distributed``.

    Attributes:
        iteration: global number of the next batch, from 0.
        rank: this process.
        world_size: number of processes.

    Raises:
        ValueError: a size is not positive, or ``rank`` is not below ``world_size``.
    """

    def __init__(
        self,
        dataset: PairedDataset,
        batch_size: int = 1,
        epoch_length: int | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        rank = idist.get_rank() if rank is None else rank
        world_size = idist.get_world_size() if world_size is None else world_size
        if epoch_length is None:
            epoch_length = max(1, -(-len(dataset) // max(1, batch_size * world_size)))
        if batch_size < 1 or epoch_length < 1 or num_workers < 0 or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size={batch_size}, epoch_length={epoch_length}, num_workers={num_workers}, rank={rank} of "
                f"{world_size}: wanted positive sizes and a rank below the number of processes."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.epoch_length = epoch_length
        self.iteration = 0
        self.rank = rank
        self.world_size = world_size
        self._draws = _Draws(batch_size, rank, world_size)
        self._loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._draws,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=outlive_interruptions,
            # A generator of its own: making an iterator must not move the global random state.
            generator=torch.Generator().manual_seed(dataset.seed),
        )

    def __len__(self) -> int:
        """Iterations per epoch."""
        return self.epoch_length

    def load_only(self, domains_of: Callable[[int], Collection[str]]) -> None:
        """Leave domains out of the batches that do not need them; what the rest holds stays the same.

        Args:
            domains_of: from a batch's global number, from 0, to the domains it needs. Batch 0 has all of them.
        """
        self._draws.domains_of = domains_of

    def start_at(self, iteration: int) -> None:
        """Let the next iterator begin at a global iteration, for example ``engine.state.iteration`` of a resumed run.

        Args:
            iteration: number of batches already consumed.

        Raises:
            ValueError: the number is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration is {iteration}; wanted a number from 0.")
        self.iteration = int(iteration)

    def __iter__(self) -> Iterator[dict[str, dict[str, torch.Tensor]]]:
        """Batches from ``self.iteration`` on, without end."""
        keep_voxels(0)  # what the checks kept was taken by the data sets, or has no room there
        self._draws.first_iteration = self.iteration
        iteration = self.iteration
        with starting_processes() if self._loader.num_workers else nullcontext():
            batches = iter(self._loader)
        for batch in batches:
            iteration += 1
            self.iteration = iteration
            yield batch
