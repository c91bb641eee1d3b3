# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Subsets of the classes, by name, over which further means are taken."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


def subset_classes(class_subsets: Mapping[str, Sequence[str]], class_names: Sequence[str]) -> dict[str, list[int]]:
    """Return the class indices of each subset.

    Args:
        class_subsets: class names by the subset's name, e.g. ``{"large": ["one", "two"]}``.
        class_names: names by class.

    Raises:
        ValueError: naming the subset, for one that is empty or no list, or that names an unknown class or one twice.
    """
    result = {}
    for name, members in class_subsets.items():
        if not name or isinstance(members, str) or not members:
            raise ValueError(f"{name!r}: found {members!r}, wanted a name and a list of class names")
        for member in members:
            if member not in class_names:
                close = difflib.get_close_matches(str(member), list(class_names), n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"the classes are {', '.join(class_names)}"
                raise ValueError(f"{name!r}: found no class {member!r}; {hint}")
        repeated = sorted({member for member in members if list(members).count(member) > 1})
        if repeated:
            raise ValueError(f"{name!r}: found {', '.join(repeated)} more than once, wanted each class once")
        result[name] = [list(class_names).index(member) for member in members]
    return result
