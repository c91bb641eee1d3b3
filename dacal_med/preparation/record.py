# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What an earlier run has already converted, so that the same command continues where it was interrupted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dacal_med.io.errors import InputError
from dacal_med.io.files import write_bytes
from dacal_med.preparation.cases import Case, Plan
from dacal_med.preparation.writing import Written

FILE_NAME = "prepared.jsonl"
_VERSION = 1  # raise when the same inputs would give other files


class Record:
    """One line of JSON per converted case, after a first line that says what is being prepared.

    Args:
        out: folder of the data set, which exists.
        what: recipe, choices and seed; a folder holds one preparation alone.

    Raises:
        InputError: the folder holds another preparation, or files of someone else, or cannot be written.
    """

    def __init__(self, out: Path, what: dict[str, Any]) -> None:
        self._out = out
        self._path = out / FILE_NAME
        self._done: dict[str, dict[str, Any]] = {}
        self._known: set[str] = set()
        head = {"version": _VERSION, **what}
        if not self._path.exists():
            if any(out.iterdir()):
                raise InputError(f"{out}: found files that are not of this preparation; wanted an empty or new folder.")
            self._append(head)
            return
        lines = self._path.read_text(encoding="utf-8").splitlines()
        read = [self._parse(line, last=number == len(lines) - 1) for number, line in enumerate(lines)]
        if not read or read[0] != head:
            raise InputError(f"{self._path}: found the preparation {read[0] if read else None}; wanted {head}.")
        self._done = {line["case"]: line for line in read[1:] if line is not None}
        self._known = {name for line in read[1:] if line is not None for name in line["outputs"]}
        # A line cut off by an interruption would swallow the next one.
        kept = [json.dumps(line) + "\n" for line in read if line is not None]
        write_bytes(self._path, "".join(kept).encode())

    def get(self, case: Case, plan: Plan) -> Written | None:
        """Return what an earlier run wrote for a case; None if inputs, label table or output differ from then."""
        line = self._done.get(case.name)
        if line is None or line["key"] != _key(case, plan):
            return None
        for name, size in line["outputs"].items():
            path = self._out / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        written = line["written"]
        return Written(**{"reference": None, **written, "shape": tuple(written["shape"])})

    def add(self, case: Case, plan: Plan, written: Written) -> None:
        """Remember a converted case."""
        outputs = {name: (self._out / name).stat().st_size for name in written.files()}
        self._append({"case": case.name, "key": _key(case, plan), "outputs": outputs, "written": asdict(written)})

    def prune(self, written: Iterable[Written]) -> None:
        """Remove what earlier runs wrote and this one does not list, such as labels of cases that changed their part.

        Args:
            written: every case of this run.
        """
        current = {name for case in written for name in case.files()}
        for name in self._known - current:
            (self._out / name).unlink(missing_ok=True)

    def _append(self, line: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror or error}") from error

    def _parse(self, line: str, *, last: bool) -> Any:
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            if last:
                return None
            raise InputError(f"{self._path}: damaged ({error}); wanted the record of an earlier run.") from error


def _key(case: Case, plan: Plan) -> str:
    """Fingerprint of all that a case depends on: its inputs, its part and its label table."""
    inputs = []
    for path in case.inputs:
        status = path.stat()
        inputs.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
    table = repr(plan.tables[case.domain]) if case.label is not None else ""
    return hashlib.sha256(repr((inputs, case.part, table)).encode()).hexdigest()
