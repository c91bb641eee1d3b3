# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""All recipes."""

from __future__ import annotations

import difflib
import re

from dacal_med.io.errors import InputError
from dacal_med.preparation.recipe import Recipe
from dacal_med.preparation.sets import (
    amos,
    any_folders,
    brats,
    btcv_chaos,
    cc359,
    disc_cup,
    hippocampus,
    lidc,
    mitochondria,
    mmwhs,
    mnms,
    saml,
    streets,
    vessels,
)

RECIPES: tuple[Recipe, ...] = (
    *mmwhs.RECIPES,
    *btcv_chaos.RECIPES,
    *amos.RECIPES,
    *saml.RECIPES,
    *hippocampus.RECIPES,
    *mnms.RECIPES,
    *brats.RECIPES,
    *mitochondria.RECIPES,
    *vessels.RECIPES,
    *disc_cup.RECIPES,
    *cc359.RECIPES,
    *lidc.RECIPES,
    *any_folders.RECIPES,
    *streets.RECIPES,
)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        InputError: there is none.
    """
    names = [recipe.name for recipe in RECIPES]
    if name not in names:
        close = _of_part(name) or difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {' or '.join(close)}?" if close else f"wanted one of {', '.join(names)}."
        raise InputError(f"prepare: found the recipe {name!r}; {hint}")
    return RECIPES[names.index(name)]


def _of_part(name: str) -> list[str]:
    """The recipes whose script is called so, or those whose names begin or go on with the word, less its version."""
    word = re.sub(r"[\W_]+", "", name.lower())
    scripts = [recipe.name for recipe in RECIPES if recipe.script == f"prepare_{word}.py"]
    plain = word.rstrip("0123456789")
    parts = [recipe.name for recipe in RECIPES if len(plain) > 2 and plain in recipe.name.replace("_", "")]
    return scripts or parts
