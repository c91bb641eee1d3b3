# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""How many processes load, and how they outlive what interrupts a run.

A run that is interrupted finishes its iteration and saves. A terminal sends Ctrl-C, and a cluster that preempts
SIGTERM, to every process of a run. A loading process that ends at it takes the run with it: the batch that the
iteration waits for never comes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ENOUGH = 2  # processes that keep a step supplied with every kind of cache, see docs/results/loading.md


def loading_processes() -> int:
    """Return how many processes load for each rank of a run by default.

    2 where a rank has a processor for each of them and two for itself, else 0: loading then happens between the steps.
    """
    # What this process may use, where the system can tell.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ranks = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return _ENOUGH if processors // ranks >= _ENOUGH + 2 else 0


def outlive_interruptions(_: int = 0) -> None:
    """Ignore SIGINT, and SIGTERM from others than the process that loads through this one.

    For ``worker_init_fn`` of a ``DataLoader``. The process still ends when the one it loads for says so or is gone
    (PyTorch's watchdog). Where the system cannot tell who sent a signal (Windows, macOS), SIGTERM ends it as before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked in this thread and in those it starts, so that only the one that waits for it receives it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # Not always the parent of this process: with `forkserver` that is the server.
        owner = multiprocessing.parent_process()
        told_by = os.getppid() if owner is None or owner.pid is None else owner.pid
        threading.Thread(target=_end_when_told_by, args=(told_by,), daemon=True).start()
    elif hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


@contextmanager
def starting_processes() -> Iterator[None]:
    """Hold back SIGINT and SIGTERM in processes that are started, and in this thread until they are.

    A process that starts anew (``spawn``, ``forkserver``) imports for seconds before :func:`outlive_interruptions` can
    act, and the server of ``forkserver`` never calls it.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which lets the signals through where it is started later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
