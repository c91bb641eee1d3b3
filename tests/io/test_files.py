# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Files are whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dacal_med.io.errors import InputError
from dacal_med.io.files import check_writable, write_bytes, write_json


def test_json_round_trip_in_a_new_folder(tmp_path):
    write_json(tmp_path / "a" / "b.json", {"x": [1, 2.5, None]})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"x": [1, 2.5, None]}
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert oct((tmp_path / "a" / "b.json").stat().st_mode & 0o777) == "0o644"


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    write_bytes(tmp_path / "a.bin", b"earlier")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*a.bin: No space left on device"):
        write_bytes(tmp_path / "a.bin", b"later")
    assert (tmp_path / "a.bin").read_bytes() == b"earlier"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_output_folder_is_made_and_checked(tmp_path, monkeypatch):
    assert check_writable(tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"output folder .*file/x cannot be written"):
        check_writable(tmp_path / "file" / "x")

    class Small:
        f_bavail, f_frsize = 256, 4096

    monkeypatch.setattr(os, "statvfs", lambda path: Small)
    with pytest.raises(InputError, match="found 1 MiB free on its disk, wanted 64 MiB"):
        check_writable(tmp_path)
    assert check_writable(tmp_path, needed_mib=0.5) == tmp_path


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="Permission denied"):
        check_writable(tmp_path)
