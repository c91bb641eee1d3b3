# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""An exported folder on disk: made beside its place and renamed, so that it is either whole or not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dacal_med.io.errors import InputError


@contextmanager
def building(out: Path, force: bool) -> Iterator[Path]:
    """Give an empty folder beside ``out``, renamed to it if the block ends well and removed otherwise.

    Args:
        out: the folder to make.
        force: replace a folder that is there.

    Raises:
        InputError: if ``out`` is a file, or a folder with something in it and ``force`` is false, or cannot be written.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: found a file, wanted the name of a new folder")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InputError(f"--out {out}: found a folder that is not empty, wanted a new one, or --force to replace it")
    temporary: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
        temporary.chmod(0o755)
        yield temporary
        if out.exists():
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as old:
                os.replace(out, Path(old) / "replaced")
                os.replace(temporary, out)
        else:
            os.replace(temporary, out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def convert(folder: Path) -> None:
    """Write the formats that derive from ``models/model.pt``, by :mod:`~dacal_med.deploy.export.convert` as a process.

    Raises:
        InputError: with what the conversion said, if it failed.
    """
    paths = [str(Path(__file__).resolve().parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(paths)}
    line = [sys.executable, "-m", "dacal_med.deploy.export.convert", str(folder)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"export failed: the network cannot be converted: {last}")
