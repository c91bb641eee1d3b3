# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading processes that outlive what interrupts a run, so that it can finish its iteration and save.

A terminal sends Ctrl-C, and a cluster that preempts SIGTERM, to every process of a run. A loading process that ends at
it takes the run with it: the batch that the iteration waits for never comes.
"""

from __future__ import annotations

import os
import signal
import threading


def outlive_interruptions(_: int = 0) -> None:
    """Ignore SIGINT, and SIGTERM from others than the process that loads through this one.

    For ``worker_init_fn`` of a ``DataLoader``. The process still ends when its parent says so or is gone (PyTorch's
    watchdog). Where the system cannot tell who sent a signal (Windows, macOS), SIGTERM ends it as before.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked in this thread and in those it starts, so that only the one that waits for it receives it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_told_by, args=(os.getppid(),), daemon=True).start()


def _end_when_told_by(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
