# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a folder, and a folder that is free once its run has ended, however it did."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dacal_med.handlers import ResumableCheckpoint, claim
from dacal_med.handlers.claim import release
from dacal_med.io.errors import InputError
from tests.conftest import ROOT
from tests.engines.builders import tiny_trainer

# A run that holds a folder, with a loading process forked from it, which it tells.
HOLDER = """
import os, sys, time
from dacal_med.handlers import claim
claim(sys.argv[1])
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(600)
"""


@contextmanager
def held_elsewhere(folder: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Hold a folder in another process; give it and the process that it has forked."""
    line = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        try:
            yield holder, child
        finally:
            holder.kill()
            os.kill(child, signal.SIGKILL)


def test_a_second_run_is_refused_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "out"
    with held_elsewhere(folder) as (holder, child):
        with pytest.raises(InputError) as caught:
            claim(folder)
        who = f"process {holder.pid} on {os.uname().nodename}"
        assert str(caught.value) == (
            f"output_dir: another run is writing to {folder} ({who}); wait for it, or give another folder"
        )
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # what it has forked still lives, and does not hold the folder
        assert claim(folder) == folder
        assert claim(folder) == folder
        release(folder)


def test_checkpoints_are_not_touched_while_another_run_writes_them(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "checkpoint_iteration=9.pt").write_bytes(b"of the other run")
    (folder / ".half.tmp").write_bytes(b"which it is writing")
    trainer = tiny_trainer()
    ResumableCheckpoint(folder).attach(trainer)
    with held_elsewhere(folder), pytest.raises(InputError, match="ckpt_dir: another run is writing to"):
        trainer.run()
    assert sorted(path.name for path in folder.iterdir()) == [".half.tmp", ".lock", "checkpoint_iteration=9.pt"]


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"output_dir: cannot lock .*\.lock: Is a directory"):
        claim(tmp_path)


def test_where_the_system_has_no_such_locks(tmp_path, monkeypatch):
    module = sys.modules["dacal_med.handlers.claim"]
    monkeypatch.setattr(module, "fcntl", None)
    claim(tmp_path)
    held = module._held[tmp_path.resolve() / ".lock"]
    assert held.is_locked
    monkeypatch.setattr(module, "_held", {})
    with pytest.raises(InputError, match="another run is writing to"):
        claim(tmp_path)
    held.release()
    claim(tmp_path)
    release(tmp_path)
