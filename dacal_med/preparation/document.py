# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``dataset.md``: what a prepared folder holds, whose it is, and on which terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dacal_med.preparation.cases import PARTS, Case, Plan, in_part
from dacal_med.preparation.recipe import Recipe, Request
from dacal_med.preparation.writing import Written

FILE_NAME = "dataset.md"
_MOST_NAMES = 1000


def counts_table(plan: Plan, written: Mapping[str, Written]) -> str:
    """Cases, patients and voxels per class of each part, as a Markdown table.

    Args:
        plan: the cases.
        written: by case name.
    """
    classes = list(plan.tables["source"].names.values())
    rows = [("part", "cases", f"{plan.unit}s", *classes)]
    for part in PARTS:
        cases = in_part(plan.cases, part)
        done = [written[case.name] for case in cases]
        if part == "target_train":
            voxels = ["not read"] * len(classes)
        else:
            voxels = [f"{sum(case.voxels[name] for case in done)}" for name in classes]
        rows.append((part, str(len(cases)), str(len({case.patient for case in cases})), *voxels))
    return _markdown(rows)


def document(recipe: Recipe, request: Request, plan: Plan, written: Mapping[str, Written]) -> str:
    """Return the text of ``dataset.md``.

    Args:
        recipe: what was prepared.
        request: with which choices and seed.
        plan: how.
        written: by case name.
    """
    chosen = ", ".join(f"{name} = {value}" for name, value in request.choices.items() if value) or "none"
    terms = [
        f"- **{owner.name}** ({owner.url}). Licence: {owner.licence}. Cite: {owner.citation}"
        for owner in recipe.owners()
    ] or ["- Whatever whoever owns the images has laid down."]
    lines = [
        f"# {plan.title}",
        "",
        f"Prepared with `python -m dacal_med prepare {recipe.name}`. Choices: {chosen}. Seed: {request.seed}."
        + (" From an incomplete download." if request.partial else ""),
        "",
        "## Terms",
        "",
        *terms,
        "",
        "Files in this folder are copies or conversions of theirs: the same terms hold.",
        "",
        "## Parts",
        "",
        plan.split,
        "",
        counts_table(plan, written),
        "",
        "Voxels per class; labels of `target_train` are neither read nor copied.",
        "",
        "## Labels",
        "",
    ]
    for domain, table in plan.tables.items():
        rows = [("value", "owner's name", "becomes", "class")]
        rows += [(row.found_as, row.original, str(row.value), row.name) for row in table.rows]
        lines += [f"In the {domain}:", "", _markdown(rows), ""]
    if plan.notes:
        lines += ["## Notes", "", *(f"- {note}" for note in plan.notes), ""]
    if plan.missing:
        lines += ["## Missing", "", *(f"- {line}" for line in missing_lines(plan, _MOST_NAMES)), ""]
    lines += [f"## {plan.unit.capitalize()}s", ""]
    lines += [*(f"- `{part}`: {_patients(in_part(plan.cases, part))}" for part in PARTS), ""]
    return "\n".join(lines)


def missing_lines(plan: Plan, most: int) -> list[str]:
    """How many of what an incomplete download lacks, and up to ``most`` of their names, a line for each kind."""
    lines = []
    for what, names in plan.missing.items():
        more = f" and {len(names) - most} more" if len(names) > most else ""
        lines.append(f"{len(names)} {what}: {', '.join(names[:most])}{more}")
    return lines


def _patients(cases: Iterable[Case]) -> str:
    names = list(dict.fromkeys(case.patient for case in cases))
    more = f" and {len(names) - _MOST_NAMES} more, as in datalist.json" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    text = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([text[0], "|" + "---|" * len(rows[0]), *text[1:]])
