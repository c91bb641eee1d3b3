# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading processes: how many, and the signals that a terminal or a cluster sends to all of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from dacal_med.data.loading_process import loading_processes, outlive_interruptions, starting_processes

tells_who = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")
METHODS = ("fork", "forkserver", "spawn")


@pytest.mark.parametrize(
    ("processors", "ranks", "wanted"), [(1, "1", 0), (3, "1", 0), (4, "1", 2), (64, "1", 2), (16, "8", 0), (32, "8", 2)]
)
def test_processes_where_there_are_processors_for_them(monkeypatch, processors, ranks, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
    assert loading_processes() == wanted
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    assert loading_processes() == wanted


class Numbers(Dataset):
    """The number of an item and the process that made it."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        time.sleep(0.02)
        return index, os.getpid()


def send_from_elsewhere(pid: int, number: int) -> None:
    """Send a signal as a process other than the parent."""
    line = f"import os; os.kill({pid}, {int(number)})"
    subprocess.run([sys.executable, "-S", "-c", line], check=True)


def ended(pid: int) -> bool:
    """Whether a child has ended, within 10 seconds."""
    for _ in range(200):
        if os.waitpid(pid, os.WNOHANG) != (0, 0):
            return True
        time.sleep(0.05)
    return False


def loading(method: str):
    """Start a process that loads; return what gives the items, the first of them and the ids of the processes."""
    loader = DataLoader(
        Numbers(), batch_size=None, num_workers=1, worker_init_fn=outlive_interruptions, multiprocessing_context=method
    )
    with starting_processes():
        items = iter(loader)
    return items, next(items)


@tells_who
@pytest.mark.parametrize("method", METHODS)
def test_loading_goes_on_until_the_process_that_it_is_for_ends_it(method):
    items, (_, pid) = loading(method)
    parent = psutil.Process(pid).ppid()
    assert pid != os.getpid() and (parent == os.getpid()) == (method != "forkserver")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):  # clusters repeat themselves
        send_from_elsewhere(pid, number)
        if method == "forkserver":  # the server is a process of the run, too
            send_from_elsewhere(parent, number)
    assert [next(items) for _ in range(30)] == [[index, pid] for index in range(1, 31)]
    (worker,) = items._workers
    os.kill(pid, signal.SIGTERM)
    worker.join(timeout=60)
    assert worker.exitcode == 0


@tells_who
@pytest.mark.parametrize("method", METHODS)
def test_signals_while_it_starts(method):
    loader = DataLoader(Numbers(), None, num_workers=1, worker_init_fn=slow_start, multiprocessing_context=method)
    with starting_processes():
        items = iter(loader)
    for number in (signal.SIGINT, signal.SIGTERM):
        send_from_elsewhere(items._workers[0].pid, number)
    assert [index for index, _ in items] == list(range(40))


def slow_start(_: int) -> None:
    time.sleep(0.5)
    outlive_interruptions()


def test_signals_are_held_back_until_they_have_started():
    def blocked() -> set[int]:
        return signal.pthread_sigmask(signal.SIG_BLOCK, set())

    before = blocked()
    with pytest.raises(ZeroDivisionError), starting_processes():
        assert blocked() == before | {signal.SIGINT, signal.SIGTERM}
        raise ZeroDivisionError
    assert blocked() == before


@tells_who
def test_the_parent_ends_it():
    pid = os.fork()
    if pid == 0:
        outlive_interruptions()
        time.sleep(60)
        os._exit(1)
    time.sleep(0.5)
    send_from_elsewhere(pid, signal.SIGTERM)
    time.sleep(0.5)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid)


@tells_who
def test_systems_that_do_not_tell_who_sent_a_signal(monkeypatch):
    monkeypatch.delattr(signal, "sigwaitinfo")
    seen = []
    monkeypatch.setattr(signal, "signal", lambda *args: seen.append(args))
    outlive_interruptions(0)
    assert seen == [(signal.SIGINT, signal.SIG_IGN)]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
