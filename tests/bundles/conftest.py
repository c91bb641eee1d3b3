# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A small phantom and one short training run of each bundle, shared by the tests of the bundles."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.bundles.builders import BUNDLES, FIRST, STREETS, Bundle, command
from tests.conftest import ROOT
from tests.processes import run_here


@pytest.fixture(params=list(BUNDLES))
def bundle(request) -> Bundle:
    """Each bundle in turn."""
    return BUNDLES[request.param]


@pytest.fixture(scope="session")
def phantom_of(tmp_path_factory) -> Callable[[Bundle], str]:
    """The phantom of a bundle, a few small cases, drawn when it is first asked for."""

    @cache
    def make(name: str) -> str:
        return BUNDLES[name].make_data(tmp_path_factory.mktemp("data") / "phantom")

    return lambda bundle: make(bundle.name)


@pytest.fixture(scope="session")
def trained_of(tmp_path_factory, phantom_of) -> Callable[[Bundle], Path]:
    """The outputs of a short run of a bundle, started from the repository's root when first asked for."""

    @cache
    def train(name: str) -> Path:
        bundle = BUNDLES[name]
        folder = tmp_path_factory.mktemp("trained")
        options = {**bundle.quick, "dataset_dir": phantom_of(bundle), "output_dir": folder}
        line = command("train", bundle=bundle, relative_to=ROOT, **options, model_file=folder / "model.pt")
        # Figures of a medical bundle are drawn by the run that is a process of its own.
        done = run_here(line, figures=name == STREETS.name)
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "stdout.txt").write_text(done.stdout)
        (folder / "stderr.txt").write_text(done.stderr)
        return folder

    return lambda bundle: train(bundle.name)


@pytest.fixture(scope="session")
def phantom(phantom_of) -> str:
    """The phantom of the first bundle."""
    return phantom_of(FIRST)


@pytest.fixture(scope="session")
def trained(trained_of) -> Path:
    """The short run of the first bundle."""
    return trained_of(FIRST)
