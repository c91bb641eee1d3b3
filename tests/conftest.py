# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What every test shares: threads, seeds, the optional public data, an environment for child processes."""

from __future__ import annotations

import locale
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

_LOCALE = locale.setlocale(locale.LC_ALL)
ROOT = Path(__file__).resolve().parents[1]

# The same examples in every run, so that a change breaks the tests and luck does not. New ones are sought with
# ``pytest --hypothesis-profile=default``.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_configure() -> None:
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))
    torch.set_num_threads(int(threads))


@pytest.fixture(autouse=True)
def seed() -> int:
    """Start each test from the same random state and locale, whatever ran before it."""
    # A library sets C for the whole process, where text files without a named encoding are read as ASCII.
    locale.setlocale(locale.LC_ALL, _LOCALE)
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    return 0


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of small public datasets beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the sample datasets, expected in ../shared/data beside the repository")
    return folder


@pytest.fixture
def subprocess_environment() -> dict[str, str]:
    """Environment of a child process that finds this checkout from any folder and computes in as many threads."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "MPLBACKEND": "Agg",
    }
