# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What a recipe says of itself: the folders it needs, whose they are, the choices it offers, how it plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dacal_med.preparation.cases import Plan


@dataclass(frozen=True)
class Owner:
    """A public data set.

    Attributes:
        name: as its owner calls it.
        url: where to ask for it.
        licence: its terms, as its owner states them.
        citation: what to cite, with DOI where there is one.
    """

    name: str
    url: str
    licence: str
    citation: str


@dataclass(frozen=True)
class Role:
    """A downloaded folder that a recipe needs.

    Attributes:
        name: the option of the command that names the folder, such as "source".
        owners: the data set it holds, or those it may hold.
        layout: what is expected in it.
    """

    name: str
    owners: tuple[Owner, ...]
    layout: str


@dataclass(frozen=True)
class Choice:
    """A choice that a recipe offers.

    Attributes:
        name: the option of the command, with "_" for "-".
        values: what may be chosen.
        default: what is chosen otherwise.
        help: one line.
    """

    name: str
    values: tuple[str, ...]
    default: str
    help: str


@dataclass(frozen=True)
class Request:
    """What the user gave.

    Attributes:
        folders: the downloaded folder of each role.
        choices: the chosen value of each choice.
        seed: of splits that no one has published.
        partial: whether an incomplete download is prepared as far as it goes.
    """

    folders: dict[str, Path]
    choices: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    partial: bool = False


@dataclass(frozen=True)
class Recipe:
    """One task from public data.

    Attributes:
        name: as typed on the command line.
        title: one line.
        roles: the folders needed.
        plan: checks the folders and says what to make of them; raises InputError where they are not as expected.
        labels: classes, in words.
        split: whose split it is, in words.
        choices: what the user may choose.
        script: file in ``scripts/`` that is the same command; ``prepare_<name>.py`` unless given.
    """

    name: str
    title: str
    roles: tuple[Role, ...]
    plan: Callable[[Request], Plan]
    labels: str
    split: str
    choices: tuple[Choice, ...] = ()
    script: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "script", self.script or f"prepare_{self.name}.py")

    def owners(self) -> tuple[Owner, ...]:
        """The data sets of all roles, each once."""
        return tuple(dict.fromkeys(owner for role in self.roles for owner in role.owners))
