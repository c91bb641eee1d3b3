# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The zip archives that torch writes, brought into one form: the same content gives the same bytes.

torch fixes times and order itself; what differs from run to run or machine to machine is a serialization id and, in
TorchScript, tables that map code to files of the machine that exported it. Neither is needed to load.
"""

from __future__ import annotations

import io
import zipfile

_ALIGNMENT = 64  # torch maps tensors into memory from multiples of this
_HEADER_BYTES = 30  # of a local file header, before name and extra field
_EXTRA_ID = b"FB"  # the id that torch gives to padding
_LEFT_OUT = (".debug_pkl", "/.data/serialization_id")
_TIME = (1980, 1, 1, 0, 0, 0)


def normalised(archive: bytes) -> bytes:
    """Return a torch archive without what differs between two exports of one model.

    Args:
        archive: as ``torch.save``, ``torch.jit.save`` or ``torch.export.save`` wrote it.

    Returns:
        The same entries, stored, aligned as torch wants them, with a fixed time.
    """
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            if name.endswith(_LEFT_OUT):
                continue
            entry = zipfile.ZipInfo(name, _TIME)
            entry.extra = _padding(result.tell() + _HEADER_BYTES + len(name.encode()))
            new.writestr(entry, old.read(name))
    return result.getvalue()


def _padding(position: int) -> bytes:
    """Return an extra field after which the position is a multiple of the alignment."""
    size = -(position + 4) % _ALIGNMENT
    return _EXTRA_ID + size.to_bytes(2, "little") + b"Z" * size
