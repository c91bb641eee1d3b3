# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A progress bar with what matters while adapting: loss, temperature, quality of the pseudo-labels, time left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ignite.engine import Events
from tqdm import tqdm

from dacal_med.engines.parallel import is_main

if TYPE_CHECKING:
    from dacal_med.engines.trainer import AdaptationTrainer

SHOWN = {"loss": "loss", "temperature_mean": "T", "quality": "quality"}


class Progress:
    """Shows one bar over the whole run, warm-up and adaptation, with the time left; on rank 0 only.

    Ignite's ``ProgressBar`` shows an epoch at a time, whose length here is a matter of bookkeeping.

    Args:
        update_every: iterations between updates of the numbers beside the bar.
    """

    def __init__(self, update_every: int = 10) -> None:
        self.update_every = update_every
        self.bar: tqdm[None] | None = None

    def attach(self, trainer: AdaptationTrainer) -> None:
        """Register on ``trainer``."""
        if not is_main():
            return
        trainer.add_event_handler(Events.EPOCH_STARTED, self._open)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        for event in (Events.COMPLETED, Events.TERMINATE, Events.EXCEPTION_RAISED):
            trainer.add_event_handler(event, self._close)

    def _open(self, trainer: AdaptationTrainer) -> None:
        if self.bar is None:
            # Opened with the first epoch, so that a resumed run starts where it stopped.
            total = trainer.state.max_epochs * trainer.state.epoch_length
            self.bar = tqdm(total=total, initial=trainer.state.iteration, unit="it", dynamic_ncols=True)
        done = trainer.state.epoch - trainer.warmup_epochs
        phase = "warm-up" if done <= 0 else "settling" if done <= trainer.settle_epochs else "adapting"
        self.bar.set_description(phase)

    def _advance(self, trainer: AdaptationTrainer) -> None:
        assert self.bar is not None
        if trainer.state.iteration % self.update_every == 0:
            self.bar.set_postfix(shown(trainer.state.output[0]), refresh=False)
        self.bar.update()

    def _close(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def shown(output: Mapping[str, float]) -> dict[str, str]:
    """Return the part of an iteration's output that the bar shows, under short names."""
    return {short: f"{output[name]:.3f}" for name, short in SHOWN.items() if name in output}
