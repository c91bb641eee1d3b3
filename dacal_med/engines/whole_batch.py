# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums over a batch that is spread over ranks and micro-batches, for losses that are no mean over samples.

A mean over samples of equal size needs nothing: the mean of the parts' gradients is that of the whole. A ratio of sums,
such as a Dice loss, needs the sums of the whole batch in each part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from torch import Tensor

from dacal_med.engines.parallel import total, world_size

_Function = TypeVar("_Function", bound=Callable[..., object])


class MicroBatches:
    """The sums of one supervised term over the micro-batches of an iteration.

    Use: inside :meth:`recording`, compute the loss of each part without gradient; then inside :meth:`replaying` once
    more with it. Every part must ask for the same sums in the same order.

    Args:
        parts: number of micro-batches.
    """

    def __init__(self, parts: int) -> None:
        self.parts = parts
        self._sums: list[Tensor] = []
        self._position = 0
        self._recording = False

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Collect the sums of one part."""
        self._recording, self._position = True, 0
        with _as_current(self):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Give one part the sums of all."""
        if self._recording:
            self._sums = [total(value) for value in self._sums]
        self._recording, self._position = False, 0
        with _as_current(self):
            yield

    def over_batch(self, own: Tensor) -> Tensor:
        """See :func:`over_batch`."""
        position, self._position = self._position, self._position + 1
        if not self._recording:
            return _with_gradient_of(own, self._sums[position], self.parts)
        if position == len(self._sums):
            self._sums.append(own.detach().clone())
        else:
            self._sums[position] += own.detach()
        return own


_current: ContextVar[MicroBatches | None] = ContextVar("micro_batches", default=None)


def over_batch(own: Tensor) -> Tensor:
    """Return the sum of a tensor over the parts of the batch, on all ranks and in all micro-batches.

    Its gradient reaches this part alone, multiplied by the number of parts, so that the mean of the parts' gradients is
    the gradient of the whole batch's loss.

    Args:
        own: sums over this part's samples.
    """
    micro = _current.get()
    if micro is not None:
        return micro.over_batch(own)
    return own if world_size() == 1 else _with_gradient_of(own, total(own), 1)


def sums_over_batch(function: _Function) -> _Function:
    """Mark a loss that calls :func:`over_batch`; micro-batches are then passed through the network once more."""
    function.sums_over_batch = True  # type: ignore[attr-defined]
    return function


def needs_sums(loss: object) -> bool:
    """Return whether a loss was marked with :func:`sums_over_batch`."""
    return bool(getattr(loss, "sums_over_batch", False))


def _with_gradient_of(own: Tensor, value: Tensor, parts: int) -> Tensor:
    return value + world_size() * parts * (own - own.detach())


@contextmanager
def _as_current(micro: MicroBatches) -> Iterator[None]:
    token = _current.set(micro)
    try:
        yield
    finally:
        _current.reset(token)
