# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A tiny run and its export, shared by the tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from dacal_med.deploy.export import exporting
from tests.bundles.builders import BUNDLES, EXPORTED, Bundle
from tests.deploy.export.builders import FIRST, convert_here, exported, make_run


@pytest.fixture(params=list(EXPORTED))
def bundle(request) -> Bundle:
    """Each bundle that can be exported, in turn."""
    return BUNDLES[request.param]


@pytest.fixture(scope="session")
def run_of(tmp_path_factory) -> Callable[[str], Path]:
    """The weights file of a tiny run of a bundle, by name."""
    return cache(lambda name: make_run(BUNDLES[name], tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="session")
def site_of(tmp_path_factory, run_of) -> Callable[[str], Path]:
    """The exported folder of a tiny run of a bundle, by name; not to be changed."""

    def make(name: str) -> Path:
        out = tmp_path_factory.mktemp("exported") / "site"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporting, "convert", convert_here)
            exported(BUNDLES[name], run_of(name), out).run()
        return out

    return cache(make)


@pytest.fixture
def site(site_of) -> Path:
    """The export of the smallest bundle; not to be changed."""
    return site_of(FIRST.name)
