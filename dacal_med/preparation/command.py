# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med prepare``: one sub-command for each recipe."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path

from dacal_med.data.datalist import FILE_NAME
from dacal_med.preparation.catalogue import RECIPES, find_recipe
from dacal_med.preparation.document import counts_table, missing_lines
from dacal_med.preparation.preparing import prepare
from dacal_med.preparation.recipe import Recipe, Request

_MOST_NAMES = 5
DESCRIPTION = (
    "Makes a folder with a datalist.json from public data as downloaded and unpacked. The same command continues where "
    "it was interrupted. `prepare --list` shows all recipes, what they need and on which terms; `prepare <recipe> "
    "--help` one of them."
)


def run(arguments: Sequence[str]) -> int:
    """Run ``prepare`` with the words that follow it.

    Returns:
        The exit status, 0.

    Raises:
        InputError: see :func:`dacal_med.preparation.prepare`.
    """
    if arguments and not arguments[0].startswith("-"):
        find_recipe(arguments[0])  # says what was meant; argparse would list all
    options = _parser().parse_args(list(arguments))
    if options.list or options.recipe is None:
        print("\n\n".join(describe(recipe) for recipe in RECIPES))
        return 0
    recipe = find_recipe(options.recipe)
    request = Request(
        folders={role.name: folder for role in recipe.roles if (folder := getattr(options, role.name)) is not None},
        choices={choice.name: getattr(options, choice.name) for choice in recipe.choices},
        seed=options.seed,
        partial=options.partial,
    )
    done = prepare(recipe, request, options.out)
    lacking = "".join(f"missing: {line}\n" for line in missing_lines(done.plan, _MOST_NAMES))
    table = counts_table(done.plan, done.written)
    print(f"{done.plan.title}\n\n{table}\n\n{lacking}{options.out / FILE_NAME}", flush=True)
    return 0


def describe(recipe: Recipe) -> str:
    """What a recipe makes, what it needs and on which terms, in a few lines."""
    lines = [f"{recipe.name}: {recipe.title}", f"labels: {recipe.labels}", f"split: {recipe.split}"]
    lines += [
        f"{_option(role.name)} FOLDER{' (optional)' if role.optional else ''}: {role.layout}" for role in recipe.roles
    ]
    lines += [
        f"{_option(choice.name)} {'{' + ','.join(choice.values) + '}' if choice.values else 'TEXT'}: {choice.help}"
        for choice in recipe.choices
    ]
    lines += [f"{owner.name}: {owner.licence}; {owner.url}" for owner in recipe.owners()]
    wrapped = [textwrap.fill(lines[0], 118)]
    wrapped += [textwrap.fill(line, 118, initial_indent="  ", subsequent_indent="      ") for line in lines[1:]]
    return "\n".join(wrapped)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}; wanted a whole number from 0")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dacal_med prepare", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--list", action="store_true", help="show all recipes")
    recipes = parser.add_subparsers(dest="recipe", metavar="recipe")
    for recipe in RECIPES:
        sub = recipes.add_parser(
            recipe.name,
            help=recipe.title,
            description=describe(recipe),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        for role in recipe.roles:
            sub.add_argument(
                _option(role.name), type=Path, required=not role.optional, metavar="FOLDER", help="as downloaded"
            )
        for choice in recipe.choices:
            limits = {"choices": choice.values} if choice.values else {"metavar": "TEXT"}
            # argparse would take a "%" for one of its own.
            text = choice.help.replace("%", "%%")
            sub.add_argument(_option(choice.name), default=choice.default, help=text, **limits)
        sub.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the data set shall be")
        sub.add_argument("--seed", type=_seed, default=0, help="of splits that no one has published (default: 0)")
        sub.add_argument("--partial", action="store_true", help="prepare an incomplete download as far as it goes")
    return parser
