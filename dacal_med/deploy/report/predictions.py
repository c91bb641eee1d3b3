# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A site's output folder as it lies on the disk: one JSON for each case."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dacal_med.deploy.report.case_json import read_case
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path

SUMMARY = "summary.json"
_SHOWN = 200  # characters of names in a message
_NUMBERED = re.compile(r"case_\d+")
_UID = re.compile(r"\b\d+(?:\.\d+){4,}\b")
_PATH = re.compile(r"(?<![\w.])(?:[A-Za-z]:)?(?:[\\/][^\s\\/:;,'\"]+){2,}")


@dataclass(frozen=True)
class Prediction:
    """One case of the folder.

    Attributes:
        name: as the inference named it, and its files.
        shown: what the report calls it: nothing that could be a patient's name unless that is asked for.
        number: its place in the folder, for links inside the report.
        folder: where its files are.
        content: the case's JSON.
    """

    name: str
    shown: str
    number: int
    folder: Path
    content: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the inference succeeded."""
        return self.content["status"] == "ok"

    @property
    def trust(self) -> Mapping[str, Any]:
        """The trust numbers of a case that succeeded."""
        return self.content["trust"]

    def file(self, kind: str) -> Path | None:
        """The file of ``"segmentation"`` or ``"confidence"``; None if it was not written."""
        name = self.content["outputs"].get(kind)
        # Names alone: a path in a JSON must not lead out of the folder.
        return None if name is None else self.folder / Path(name).name

    def expected_dice(self) -> float:
        """What cases are sorted by; a case in which nothing was found comes first."""
        dice = self.trust["mean_expected_dice"]
        return -1.0 if dice is None else float(dice)


def read_predictions(folder: str | Path, identify: bool = False) -> list[Prediction]:
    """Read the cases of an output folder, in the order of their names.

    Args:
        folder: of the site's inference.
        identify: show names and messages as they are; otherwise cases with other names than ``case_0001`` are numbered,
            and UIDs and paths are taken out of messages.

    Raises:
        InputError: there is no case, or a file is not the JSON of one.
    """
    folder = given_path(folder, "--predictions")
    if not folder.is_dir():
        raise InputError(f"--predictions: found no folder {folder}, wanted the output folder of the inference")
    files = sorted(
        path
        for path in folder.glob("*.json")
        if path.is_file() and path.name != SUMMARY and not path.name.startswith(".")
    )
    if not files:
        raise InputError(
            f"--predictions: found no case in {folder}, wanted one .json for each, as the inference writes"
        )
    predictions = []
    for number, path in enumerate(files, 1):
        content = read_case(path)
        name = content["case"]
        shown = name if identify or _NUMBERED.fullmatch(name) else f"case {number}"
        if not identify:
            secret = None if _NUMBERED.fullmatch(name) else name
            content = {
                **content,
                "error": None if content["error"] is None else anonymous(content["error"], secret),
                "warnings": [anonymous(warning, secret) for warning in content["warnings"]],
            }
        predictions.append(Prediction(name, shown, number, folder, content))
    return predictions


@dataclass(frozen=True)
class Classes:
    """What the numbers in a segmentation mean.

    Attributes:
        names: by number, the background's too.
        background: the number that is no structure; None where every class is one.
    """

    names: tuple[str, ...] = ()
    background: int | None = 0

    @property
    def structures(self) -> dict[str, int]:
        """The numbers of the classes that trust numbers are given for, by name."""
        return {name: k for k, name in enumerate(self.names) if k != self.background}


def classes_of(predictions: Sequence[Prediction]) -> Classes:
    """Return the classes of the cases that succeeded; no names if none did.

    Raises:
        InputError: if cases are of models with different classes.
    """
    classes: Classes | None = None
    for prediction in predictions:
        if prediction.ok:
            found = Classes(tuple(prediction.trust["class_names"]), prediction.trust["background"])
            if classes is not None and found != classes:
                both = [f"{str(list(c.names))[:_SHOWN]} (background {c.background})" for c in (classes, found)]
                raise InputError(
                    f"{prediction.folder}: found cases of the classes {' and '.join(both)}, wanted one model"
                )
            classes = found
    return classes or Classes()


def anonymous(text: str, secret: str | None = None) -> str:
    """Return a message without UIDs, paths and ``secret``."""
    text = _PATH.sub("(path)", _UID.sub("(UID)", text))
    return text if secret is None or len(secret) < 3 else text.replace(secret, "(name)")
