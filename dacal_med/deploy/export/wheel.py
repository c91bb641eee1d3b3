# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The project's own wheel, made from the files that run here: a site runs the code that its export was checked with.

Its metadata are those of ``pyproject.toml`` where there is a checkout, as setuptools writes them, else those that were
installed. The same files give the same bytes: sorted, stored, without times.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tempfile
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from email import message_from_bytes
from functools import cache
from pathlib import Path

from dacal_med import __version__
from dacal_med.deploy.export.packages import needed
from dacal_med.io.errors import InputError

_PACKAGE = Path(__file__).resolve().parents[2]
_SUFFIXES = (".py", ".json", ".typed")
_INFORMATION = f"dacal_med-{__version__}.dist-info"
_TAG = "py3-none-any"
_TIME = (1980, 1, 1, 0, 0, 0)
_HOOK = "import sys; from setuptools import build_meta; build_meta.prepare_metadata_for_build_wheel(sys.argv[1])"


@dataclass(frozen=True)
class Wheel:
    """A wheel of the running package.

    Attributes:
        name: of the file.
        content: the file.
        needs: names of the packages that it needs without extras, sorted.
    """

    name: str
    content: bytes
    needs: tuple[str, ...]


@cache
def own_wheel() -> Wheel:
    """Return the wheel of the running package.

    Raises:
        InputError: if its metadata cannot be had, or are another version's.
    """
    paths = (path for path in _PACKAGE.rglob("*") if path.suffix in _SUFFIXES and not path.name.startswith("."))
    files = {path.relative_to(_PACKAGE.parent).as_posix(): path.read_bytes() for path in paths}
    information = _information()
    files.update({f"{_INFORMATION}/{name}": content for name, content in information.items()})
    files[f"{_INFORMATION}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: dacal_med\nRoot-Is-Purelib: true\nTag: {_TAG}\n"
    ).encode()
    lines = [f"{name},sha256={_digest(files[name])},{len(files[name])}\n" for name in sorted(files)]
    record = f"{_INFORMATION}/RECORD"
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_STORED) as archive:
        for name in [*sorted(files), record]:
            entry = zipfile.ZipInfo(name, _TIME)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # as on Unix, whatever this is
            archive.writestr(entry, files[name] if name != record else "".join([*lines, f"{record},,\n"]))
    needs = needed(message_from_bytes(information["METADATA"]).get_all("Requires-Dist", []))
    return Wheel(f"dacal_med-{__version__}-{_TAG}.whl", content.getvalue(), tuple(sorted(needs)))


def _information() -> dict[str, bytes]:
    """Return the metadata and licences by their names in ``.dist-info``."""
    root = _PACKAGE.parent
    if not (root / "pyproject.toml").is_file():
        return _read(root)
    with tempfile.TemporaryDirectory() as folder:
        line = [sys.executable, "-c", _HOOK, folder]
        done = subprocess.run(line, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(
                f"{root / 'pyproject.toml'}: setuptools cannot make metadata of it ({last}); wanted "
                "pip install 'dacal-med[export]'"
            )
        return _read(Path(folder))


def _read(place: Path) -> dict[str, bytes]:
    folder = place / _INFORMATION
    if not (folder / "METADATA").is_file():
        found = ", ".join(path.name for path in place.glob("dacal_med-*.dist-info")) or "none"
        raise InputError(f"{place}: found the metadata {found}, wanted {_INFORMATION}; install dacal-med again")
    paths = [folder / "METADATA", *(path for path in folder.glob("licenses/**/*") if path.is_file())]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
