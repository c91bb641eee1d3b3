# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Loading processes: how many, and the signals that a terminal or a cluster sends to all of a run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from torch.utils.data import DataLoader, Dataset

from dacal_med.data.loading_process import loading_processes, outlive_interruptions

tells_who = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system does not tell who sent a signal")


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


@tells_who
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_loading_goes_on(number):
    loader = DataLoader(Numbers(), batch_size=None, num_workers=1, worker_init_fn=outlive_interruptions)
    batches = iter(loader)
    found = [next(batches)]
    for _ in range(3):  # clusters repeat themselves
        send_from_elsewhere(found[0][1], number)
    found += list(batches)
    assert [index for index, _ in found] == list(range(40))
    assert {pid for _, pid in found} == {found[0][1]} and found[0][1] != os.getpid()


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
