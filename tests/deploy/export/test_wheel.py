# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The wheel in an export: what setuptools would build, the same again from an installation, and installable."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dacal_med
from dacal_med.deploy.export import wheel
from dacal_med.deploy.export.wheel import own_wheel
from dacal_med.io.errors import InputError
from tests.conftest import ROOT

BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
AGAIN = "import sys; from dacal_med.deploy.export.wheel import own_wheel; sys.stdout.buffer.write(own_wheel().content)"


def contents(source: Path | io.BytesIO) -> dict[str, bytes]:
    with zipfile.ZipFile(source) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Where pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / own_wheel().name).write_bytes(own_wheel().content)
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*line, "--target", "there", own_wheel().name], cwd=folder, check=True)
    return folder / "there"


def test_it_is_what_setuptools_builds(tmp_path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "dacal_med"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "dist"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    name = done.stdout.split()[-1]
    wanted, found = contents(tmp_path / "dist" / name), contents(io.BytesIO(own_wheel().content))
    assert own_wheel().name == name
    information = f"dacal_med-{dacal_med.__version__}.dist-info"
    tool, record = {f"{information}/{file}" for file in ("WHEEL", "top_level.txt")}, f"{information}/RECORD"
    own = f"{information}/WHEEL"
    assert found.keys() == wanted.keys() - {f"{information}/top_level.txt"}
    assert {n: v for n, v in found.items() if n not in {own, record}} == {
        n: v for n, v in wanted.items() if n not in {*tool, record}
    }
    lines = {text for text in wanted[record].decode().split() if text.split(",")[0] not in tool}
    assert {text for text in found[record].decode().split() if text.split(",")[0] != own} == lines
    assert wanted[own].decode().split("\n")[2:4] == found[own].decode().split("\n")[2:4]


def test_an_installation_makes_the_same_bytes_again(installed, tmp_path):
    """From the wheel as pip installs it, with no checkout around; another version's metadata are refused."""
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], cwd=tmp_path, capture_output=True, env={"PYTHONPATH": str(installed)}, check=True
    )
    assert done.stdout == own_wheel().content
    (information,) = installed.glob("*.dist-info")
    information.rename(installed / "dacal_med-0.0.9.dist-info")
    done = subprocess.run(
        [sys.executable, "-c", AGAIN], cwd=tmp_path, capture_output=True, env={"PYTHONPATH": str(installed)}, text=True
    )
    (installed / "dacal_med-0.0.9.dist-info").rename(information)
    assert f"found the metadata dacal_med-0.0.9.dist-info, wanted {information.name}; install" in done.stderr


def test_a_project_that_setuptools_refuses(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 3\n")
    monkeypatch.setattr(wheel, "_PACKAGE", tmp_path / "dacal_med")
    with pytest.raises(InputError, match=r"pyproject.toml: setuptools cannot make metadata of it \(.*\[export\]"):
        wheel.own_wheel.__wrapped__()
