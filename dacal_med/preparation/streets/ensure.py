# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The driving tasks without any download: rendered streets, written as the owners ship theirs, then prepared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dacal_med.data.generated import generate_once
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.preparation.catalogue import find_recipe
from dacal_med.preparation.preparing import prepare
from dacal_med.preparation.recipe import Request
from dacal_med.preparation.streets.layouts import TASKS, Renderer

PARAMETERS_FILE = "streets.json"
RAW = "raw"
_VERSION = 1  # raise whenever the same parameters would give other pixels


@dataclass(frozen=True)
class _Parameters:
    """What determines every pixel; kept beside the images to tell whether they are the wanted ones."""

    version: int
    task: str
    image_size: tuple[int, int]
    num_source: int
    num_target_train: int
    num_target_val: int
    seed: int
    choices: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "image_size": list(self.image_size)}


def ensure_streets(
    folder: str | Path,
    task: str = "gta2cityscapes",
    image_size: Sequence[int] = (96, 192),
    num_source: int = 24,
    num_target_train: int = 16,
    num_target_val: int = 8,
    seed: int = 0,
    **choices: str,
) -> str:
    """Generate a stand-in for a driving task once.

    Streets are rendered with the looks of both domains and written in the layouts of their owners, into the folder
    ``raw``, from which the task's own recipe prepares the data set, as it would from the real ones. The folder appears
    complete or not at all, so that several processes may call this at the same time. A later call with the same
    parameters returns at once.

    Args:
        folder: where the data set shall be; parents are created.
        task: "gta2cityscapes", "synthia2cityscapes", "cityscapes2acdc" or "cityscapes2darkzurich".
        image_size: rows and columns of the images.
        num_source: labelled images of the source.
        num_target_train: unlabelled images of the target; ACDC's conditions take turns.
        num_target_val: labelled images of the target for evaluation.
        seed: the same seed, sizes and choices give the same pixels.
        choices: of the recipe, such as ``classes="13"`` of "synthia2cityscapes".

    Returns:
        The folder, ``~`` expanded, ready for :func:`dacal_med.data.datalist.load_datalist`.

    Raises:
        InputError: the folder holds something else, or streets made with other parameters; the task or a choice is
            unknown.
        ValueError: a count is not positive or the size is too small.
    """
    if task not in TASKS:
        raise InputError(f"streets: found the task {task!r}, wanted one of {list(TASKS)}")
    size, counts = tuple(int(n) for n in image_size), (num_source, num_target_train, num_target_val)
    if len(size) != 2 or min(size) < 16 or min(counts) < 1:
        raise ValueError(
            f"image_size={size}, image counts={counts}: wanted rows and columns of at least 16, and at least one image "
            "of each kind."
        )
    recipe = find_recipe(task)
    chosen = {choice.name: choices.get(choice.name, choice.default) for choice in recipe.choices}
    parameters = _Parameters(
        _VERSION,
        task,
        (size[0], size[1]),
        int(num_source),
        int(num_target_train),
        int(num_target_val),
        int(seed),
        chosen | choices,
    )

    def build(place: Path) -> None:
        # The data set's folder must be empty to be prepared, so the raw files move in afterwards.
        with tempfile.TemporaryDirectory(prefix=f"{place.name}.raw-", dir=place.parent) as raw:
            folders = _render(Path(raw), parameters)
            request = Request(folders, parameters.choices, parameters.seed, partial=True)
            prepare(recipe, request, place, progress=False)
            (place / RAW).mkdir()
            for made in folders.values():
                made.rename(place / RAW / made.name)

    return generate_once(
        given_path(folder, home=True), parameters.as_json(), build, "stand-in for streets", PARAMETERS_FILE
    )


def _render(raw: Path, parameters: _Parameters) -> dict[str, Path]:
    (source, write_source), (target, write_target) = TASKS[parameters.task]
    write_source(Renderer(raw / source, parameters.image_size, parameters.seed, 0), parameters.num_source)
    renderer = Renderer(raw / target, parameters.image_size, parameters.seed, 1)
    write_target(renderer, "train", parameters.num_target_train, labelled=False)
    write_target(renderer, "val", parameters.num_target_val, labelled=True)
    return {"source": raw / source, "target": raw / target}
