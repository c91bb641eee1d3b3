# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One table of what `check_trust.py` found over seeds: mean and standard deviation of each number.

    python -m scripts.summarise_trust hippocampus=SEED_0.json,SEED_1.json,SEED_2.json sts=... [--estimates]

Each file is one seed's; numbers of several classes are averaged within a seed first. With `--estimates` a second table
has the other estimates and intervals that the first is compared with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dacal_med.io.errors import InputError

Number = Callable[[Mapping[str, Any]], float | None]
"""Takes a number out of one class of one seed's result."""

NONE = "-"
COLUMNS: dict[str, tuple[Number, str]] = {
    "true Dice": (lambda c: float(np.mean(c["true_dice"])), ".3f"),
    "error of expected Dice": (lambda c: c["estimates"]["expected"]["mae"], ".3f"),
    "bias": (lambda c: c["estimates"]["expected"]["bias"], "+.3f"),
    "Pearson": (lambda c: c["estimates"]["expected"]["pearson"], ".2f"),
    "true Dice inside": (lambda c: c["intervals"]["cases"]["dice"], ".2f"),
    "width": (lambda c: c["intervals"]["cases"]["dice_width"], ".2f"),
    "true volume inside": (lambda c: c["intervals"]["cases"]["volume"], ".2f"),
    "error of expected volume": (lambda c: c["volumes"]["expected"]["mae"], ".2f"),
}
OTHERS: dict[str, tuple[Number, str]] = {
    "error: source mean": (lambda c: c["estimates"]["source mean"]["mae"], ".3f"),
    "error: corrected": (lambda c: c["estimates"]["corrected"]["mae"], ".3f"),
    "inside: independent voxels": (lambda c: c["intervals"]["independent"]["dice"], ".2f"),
    "inside: no reference": (lambda c: c["intervals"]["assumed"]["dice"], ".2f"),
    "its width": (lambda c: c["intervals"]["assumed"]["dice_width"], ".2f"),
    "inside: source left out": (
        lambda c: None if c["source_left_out"] is None else c["source_left_out"]["dice"],
        ".2f",
    ),
    "error of the mask's volume": (lambda c: c["volumes"]["predicted"]["mae"], ".2f"),
}


def table(sets: Mapping[str, Sequence[Mapping[str, Any]]], columns: Mapping[str, tuple[Number, str]]) -> str:
    """Return a Markdown table with a row for each data set and model.

    Args:
        sets: results of seeds, as `check_trust.py` writes them, by name of the data set.
        columns: what is shown, by heading.

    Raises:
        InputError: seeds of a data set are of different models.
    """
    lines = [f"| data | model | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for name, seeds in sets.items():
        if any(list(seed) != list(seeds[0]) for seed in seeds):
            raise InputError(f"{name}: found seeds of different models; wanted the same in each file")
        for model in seeds[0]:
            cells = []
            for number, form in columns.values():
                values = [_over_classes(seed[model]["classes"], number) for seed in seeds]
                cells.append(_spread([value for value in values if value is not None], form))
            lines.append(f"| {name} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def alarms(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return a Markdown table of the share of images called unusual, by group of images."""
    groups = list(next(iter(next(iter(sets.values()))[0].values()))["alarms"])
    columns: dict[str, tuple[Number, str]] = {
        group: (lambda model, group=group: model["alarms"][group]["either"], ".2f")  # type: ignore[misc]
        for group in groups
    }
    # A model's alarms are of no class: it stands for one here.
    wrapped = {
        name: [{model: {"classes": {"": result}} for model, result in seed.items()} for seed in seeds]
        for name, seeds in sets.items()
    }
    return table(wrapped, columns)


def _over_classes(classes: Mapping[str, Mapping[str, Any]], number: Number) -> float | None:
    values = [value for entry in classes.values() if (value := number(entry)) is not None]
    return float(np.mean(values)) if values else None


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return NONE
    mean = f"{np.mean(values):{form}}"
    return mean if len(values) == 1 else f"{mean} ± {np.std(values, ddof=1):{form.replace('+', '')}}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("sets", nargs="+", metavar="NAME=FILE,FILE...", help="a data set and a file for each seed")
    parser.add_argument("--estimates", action="store_true", help="also what they are compared with")
    options = parser.parse_args(arguments)
    sets = {}
    for item in options.sets:
        name, _, files = item.partition("=")
        try:
            sets[name] = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files.split(",")]
        except (OSError, ValueError) as error:
            raise InputError(f"{item}: cannot be read ({error}); wanted NAME=FILE,FILE of check_trust.py") from error
    print(table(sets, COLUMNS))
    if options.estimates:
        print("\n" + table(sets, OTHERS))
    print("\n" + alarms(sets))
    return 0


if __name__ == "__main__":
    sys.exit(main())
