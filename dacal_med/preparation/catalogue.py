# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""All recipes."""

from __future__ import annotations

import difflib

from dacal_med.errors import InputError
from dacal_med.preparation.recipe import Recipe
from dacal_med.preparation.sets import (
    amos,
    brats,
    btcv_chaos,
    cc359,
    disc_cup,
    hippocampus,
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
    *streets.RECIPES,
)


def find_recipe(name: str) -> Recipe:
    """Return the recipe of a name.

    Raises:
        InputError: there is none.
    """
    names = [recipe.name for recipe in RECIPES]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}?" if close else f"wanted one of {', '.join(names)}."
        raise InputError(f"prepare: found the recipe {name!r}; {hint}")
    return RECIPES[names.index(name)]
