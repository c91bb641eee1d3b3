# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""From a request to a finished data set: plan, check, convert, count, document."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from dacal_med.data.class_counts import write_class_counts
from dacal_med.data.datalist import FILE_NAME, load_datalist
from dacal_med.io.errors import InputError
from dacal_med.io.files import check_writable, given_path, write_bytes, write_json
from dacal_med.preparation import document
from dacal_med.preparation.cases import PARTS, Plan, check_plan, in_part
from dacal_med.preparation.recipe import Recipe, Request
from dacal_med.preparation.record import Record
from dacal_med.preparation.writing import Written, write_case


@dataclass(frozen=True)
class Prepared:
    """A finished data set.

    Attributes:
        plan: the cases and how they were made.
        written: files and voxels per class of each case, by its name.
    """

    plan: Plan
    written: dict[str, Written]


def prepare(recipe: Recipe, request: Request, out: Path, *, progress: bool = True) -> Prepared:
    """Make a data set from downloaded folders.

    Nothing is written before the folders were checked. Cases that an earlier, interrupted run converted are kept if
    their inputs have not changed; ``datalist.json`` comes last, so that a folder with one is complete. The downloaded
    folders are only read.

    Args:
        recipe: which task.
        request: the folders and choices.
        out: where the data set shall be; made if need be, outside of the downloaded folders.
        progress: whether to show a progress bar.

    Returns:
        What was prepared, with the voxels of every label.

    Raises:
        InputError: a folder or choice is missing or not what the recipe expects, a label value is in no row of its
            table, or the output folder cannot be used.
    """
    _check_request(recipe, request, out)
    plan = recipe.plan(request)
    check_plan(plan)
    what = {"recipe": recipe.name, "choices": dict(sorted(request.choices.items())), "seed": request.seed}
    record = Record(check_writable(out), what)
    # An older datalist would name files that are about to be replaced.
    (out / FILE_NAME).unlink(missing_ok=True)
    written: dict[str, Written] = {}
    for case in tqdm(plan.cases, desc=recipe.name, unit="case", disable=not progress):
        done = record.get(case, plan)
        if done is None:
            done = write_case(case, plan, out)
            record.add(case, plan, done)
        written[case.name] = done
    record.prune(written.values())
    write_bytes(out / document.FILE_NAME, document.document(recipe, request, plan, written).encode())
    sources = [written[case.name] for case in in_part(plan.cases, "source")]
    write_class_counts(out, {done.label: done.voxels for done in sources if done.label is not None})
    write_json(out / FILE_NAME, _datalist(plan, written))
    try:
        load_datalist(out)
    except InputError:
        (out / FILE_NAME).unlink()  # a folder with one is complete
        raise
    return Prepared(plan, written)


def _check_request(recipe: Recipe, request: Request, out: Path) -> None:
    wanted = [role.name for role in recipe.roles if not role.optional]
    if not set(wanted) <= set(request.folders) <= {role.name for role in recipe.roles}:
        raise InputError(f"{recipe.name}: found the folders {sorted(request.folders)}; wanted {wanted}.")
    choices = {choice.name: choice.values for choice in recipe.choices}
    for name, values in choices.items():
        if name not in request.choices or (values and request.choices[name] not in values):
            raise InputError(
                f"{recipe.name}: found {name} = {request.choices.get(name)!r}; wanted one of {', '.join(values)}."
            )
    unknown = sorted(set(request.choices) - set(choices))
    if unknown:
        raise InputError(f"{recipe.name}: found the choice(s) {', '.join(unknown)}; wanted {sorted(choices)}.")
    for name, folder in request.folders.items():
        original = given_path(folder, f"--{name.replace('_', '-')}", home=True).resolve()
        if original == out.resolve() or original in out.resolve().parents:
            raise InputError(f"--out {out}: lies in --{name} {folder}; wanted a folder outside of the originals.")


def _datalist(plan: Plan, written: dict[str, Written]) -> dict[str, object]:
    content: dict[str, object] = {
        "name": plan.title,
        "labels": {str(value): name for value, name in plan.tables["source"].names.items()},
    }
    if plan.modality:
        content["modality"] = plan.modality
    for part in PARTS:
        rows = []
        for case in in_part(plan.cases, part):
            done = written[case.name]
            row = {
                "image": done.image,
                "label": done.label,
                "patient": case.patient if plan.unit == "patient" else None,
                "group": case.group,
                "reference": done.reference,
            }
            rows.append({key: value for key, value in row.items() if value is not None})
        content[part] = rows
    return content
