# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``SHA256SUMS``: every way a folder can differ from what was exported is told by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dacal_med.deploy.runtime import checksums
from dacal_med.io.errors import InputError


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small folder with checksums."""
    for name in ("configs/a.json", "models/model.pt", "docs/README.md"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(name)
    checksums.write(tmp_path)
    return tmp_path


def test_an_unchanged_folder(folder):
    assert checksums.verify(folder) == 3
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    # The published digest of "abc" (FIPS 180-2, appendix B.1).
    (folder / "abc").write_text("abc")
    assert checksums.digest(folder / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert [line.split("  ")[1] for line in lines] == ["configs/a.json", "docs/README.md", "models/model.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "models" / "model.pt").write_text("other"), "models/model.pt was changed"),
        (lambda f: (f / "docs" / "README.md").unlink(), "docs/README.md is missing"),
        (lambda f: (f / "configs" / "more.json").write_text(""), "configs/more.json was added"),
        (lambda f: (f / "models" / "more.whl").write_text(""), "models/more.whl was added"),
        (lambda f: (f / "SHA256SUMS").unlink(), "SHA256SUMS: not found"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "found no line"),
        (lambda f: (f / "SHA256SUMS").write_text("x  y\n"), "line 1: found 'x  y'"),
        (lambda f: (f / "SHA256SUMS").write_text("0" * 64 + "  ../a\n"), "line 1: found"),
    ],
)
def test_what_differs_is_named(folder, change, message):
    change(folder)
    with pytest.raises(InputError, match=message):
        checksums.verify(folder)


def test_results_may_be_added(folder):
    for name in ("predictions/case.nii.gz", "notes.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("")
    assert checksums.verify(folder) == 3
