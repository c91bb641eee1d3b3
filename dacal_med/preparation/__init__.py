# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From a public data set as its owner ships it to a folder with a ``datalist.json``.

A *recipe* is one task: which downloaded folders it needs, how their labels become classes, who is in which part. The
recipes are in :mod:`dacal_med.preparation.sets`, one file per data set; :func:`prepare` is the same for all of them.
"""

from __future__ import annotations

from dacal_med.preparation.catalogue import RECIPES, find_recipe
from dacal_med.preparation.preparing import prepare
from dacal_med.preparation.recipe import Recipe, Request
from dacal_med.preparation.streets.ensure import ensure_streets

__all__ = ["RECIPES", "Recipe", "Request", "ensure_streets", "find_recipe", "prepare"]
