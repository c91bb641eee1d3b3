# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Any folders of images, matched with folders of labels by file name: for data that no other recipe knows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.formats import WANTED, ImageFile, check_dimensions, find_images
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.recipe import Choice, Recipe, Request, Role
from dacal_med.preparation.split import section_blocks, split_patients

Pairs = dict[str, tuple[ImageFile, ImageFile | None]]
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}
SPLIT = (
    "by patient, at random with a seed: 80 % of the target for training, 20 % for evaluation; where only some target "
    "patients have labels, these for evaluation and the others for training; without target labels, all for training"
)
_EVERY_FILE = "Every file is a patient; a source of one stack of sections has five, blocks of neighbouring sections."


def parse_table(text: str, option: str) -> LabelTable:
    """Return the label table of a text such as ``"0=background,55-70=liver,2=spleen"``.

    Classes are numbered in the order in which they are named first, the background first; several values may become
    one class.

    Args:
        text: comma-separated ``VALUE=NAME`` or ``LOW-HIGH=NAME``.
        option: of the command, for messages.

    Raises:
        InputError: not of that form, ranges that overlap, no background first, or no other class.
    """
    rows: list[tuple[int | tuple[int, int], str, int, str]] = []
    numbers: dict[str, int] = {}
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*=\s*(\S.*?)\s*", item)
        if match is None:
            raise InputError(f"{option}: found {item[:100]!r}; wanted VALUE=NAME, such as '0=background,1=liver'.")
        low, high, name = int(match[1]), int(match[2] or match[1]), match[3]
        rows.append(((low, high), name, numbers.setdefault(name, len(numbers)), name))
    if next(iter(numbers)) != "background" or len(numbers) < 2:
        raise InputError(f"{option}: found the classes {', '.join(numbers)}; wanted background first, then others.")
    try:
        return LabelTable.of(*rows)
    except ValueError as error:
        raise InputError(f"{option}: {error}; wanted values that do not overlap.") from error


def _searcher(pattern: str, option: str) -> Callable[[ImageFile], str]:
    """Return what gives the part of a file's key that a pattern finds, its first group if it has one."""
    try:
        compiled = re.compile(unicodedata.normalize("NFC", pattern))
    except re.error as error:
        raise InputError(f"{option}: found {pattern!r}, {error}; wanted a regular expression.") from error

    def search(image: ImageFile) -> str:
        match = compiled.search(unicodedata.normalize("NFC", image.key))  # umlauts as macOS writes them are the same
        found = None if match is None else match.group(1 if compiled.groups else 0)
        if not found:
            raise InputError(
                f"{image.path}: its name has nothing like {pattern!r}; wanted that in every name ({option})."
            )
        return str(found)

    return search


def _by_key(images: list[ImageFile], match: str, folder: Path) -> dict[str, ImageFile]:
    search = _searcher(match, "--match")
    found: dict[str, ImageFile] = {}
    for image in images:
        key = search(image) if image.section is None else f"{search(image)}_{image.section:04d}"
        if key in found:
            raise InputError(
                f"{folder}: found {found[key].path.name} and {image.path.name} for {key}; wanted one of them."
            )
        found[key] = image
    return found


def _pairs(request: Request, domain: str) -> Pairs:
    """Images of a domain by key, each with its label if it has one."""
    choices, match = request.choices, request.choices["match"] or r".+"
    sections = choices["stacks"] == "sections"
    folder, label_folder = request.folders[domain], request.folders.get(f"{domain}_labels")
    found = find_images(folder, array=choices["image_array"], option="--image-array", sections=sections, labels=False)
    images = _by_key(found, match, folder)
    labels: dict[str, ImageFile] = {}
    if label_folder is not None:
        array, option = choices["label_array"], "--label-array"
        found = find_images(label_folder, array=array, option=option, sections=sections, labels=True)
        labels = _by_key(found, match, label_folder)
        wanted = {key: file.path for key, file in images.items() if domain == "source" or key in labels}
        given = {key: file.path for key, file in labels.items()}
        folders.require_same(wanted, given, label_folder, "image, matched by name (--match)")
    return {key: (image, labels.get(key)) for key, image in images.items()}


def _require_two_domains(request: Request, pairs: Mapping[str, Pairs]) -> None:
    """Refuse images that are in both domains, by whatever paths."""
    of_source, of_target = (
        {path.resolve(): path for image, _ in pairs[domain].values() for path in image.inputs}
        for domain in ("source", "target")
    )
    shared = sorted(set(of_source) & set(of_target))
    if shared:
        raise InputError(
            f"--source {request.folders['source']} and --target {request.folders['target']}: found "
            f"{of_source[shared[0]].name} in both ({len(shared)} such file(s)); wanted the images of two domains."
        )


def _patients(domain: str, pairs: Pairs, pattern: str) -> dict[str, str]:
    """The patient of each image of a domain, by its key."""
    if pattern:
        search = _searcher(pattern, "--patient")
        return {key: search(image) for key, (image, _) in pairs.items()}
    # Without --patient names say nothing of who is who: a name in both domains is chance.
    patients = {key: f"{domain} {image.key}" for key, (image, _) in pairs.items()}
    stacks = sorted(set(patients.values()))
    if domain == "source" and len(stacks) == 1 < len(pairs):
        # Nothing of a lone patient could be held out.
        return dict(zip(pairs, section_blocks(stacks[0], len(pairs)), strict=True))
    return patients


def _case(name: str, patient: str, part: Part, image: ImageFile, label: ImageFile | None) -> Case:
    copied = image.header.format == "nifti"
    inputs = image.inputs if label is None or part == "target_train" else (*image.inputs, *label.inputs)
    read = None if label is None else labelled(part, label.read)
    return Case(name, patient, part, inputs, image.path if copied else image.read, read)


def _modality(pairs: Mapping[str, Pairs]) -> dict[str, str]:
    """What the headers of DICOM tell, which the prepared files cannot; nothing for a domain without them."""
    found: dict[str, str] = {}
    for domain, images in pairs.items():
        for image, _ in images.values():
            modality = image.header.modality
            if modality is not None and found.setdefault(domain, modality) != modality:
                raise InputError(
                    f"{image.path}: found modality {modality}, while others of the {domain} have {found[domain]}; "
                    "wanted images of one modality."
                )
    return found


def _notes(pairs: Mapping[str, Pairs]) -> tuple[str, ...]:
    """What the headers make the reader say, each once with the number of files."""
    notes: dict[str, list[Path]] = {}
    for file in (file for images in pairs.values() for pair in images.values() for file in pair if file is not None):
        for note in file.header.notes:
            notes.setdefault(note, []).append(file.path)
    return tuple(f"{files[0].name} and {len(files) - 1} more: {note}" for note, files in notes.items())


def _plan(request: Request) -> Plan:
    choices = request.choices
    table = parse_table(choices["labels"], "--labels")
    target_table = parse_table(choices["target_values"], "--target-values") if choices["target_values"] else table
    if target_table.names != table.names:
        raise InputError(
            f"--target-values: found the classes {', '.join(target_table.names.values())}; wanted those of --labels in "
            f"the same order, {', '.join(table.names.values())}."
        )
    if len({request.folders[domain].expanduser().resolve() for domain in ("source", "target")}) == 1:
        raise InputError(
            f"--source and --target: found {request.folders['source']} for both; wanted the images of two domains."
        )
    pairs = {domain: _pairs(request, domain) for domain in ("source", "target")}
    _require_two_domains(request, pairs)
    check_dimensions(file for found in pairs.values() for pair in found.values() for file in pair if file is not None)
    patients = {domain: _patients(domain, found, choices["patient"]) for domain, found in pairs.items()}
    target = pairs["target"]
    without = {patients["target"][key] for key, (_, label) in target.items() if label is None}
    complete = set(patients["target"].values()) - without
    parts: dict[str, Part] = dict.fromkeys(without, "target_train")
    parts |= dict.fromkeys(complete, "target_val") if without else split_patients(complete, _SHARES, request.seed)
    cases = [
        _case(f"{domain}_{image.name}", patient, "source" if domain == "source" else parts[patient], image, label)
        for domain, found in pairs.items()
        for key, (image, label) in found.items()
        for patient in [patients[domain][key]]
    ]
    return Plan(
        title=f"{request.folders['source'].resolve().name} to {request.folders['target'].resolve().name}",
        tables={"source": table, "target": target_table},
        cases=tuple(cases),
        split=f"{SPLIT[0].upper()}{SPLIT[1:]} (seed {request.seed}). "
        + (f"Patients: what {choices['patient']!r} finds in a name." if choices["patient"] else _EVERY_FILE),
        modality=_modality(pairs),
        notes=_notes(pairs),
        evaluated=bool(complete),
    )


RECIPES = (
    Recipe(
        name="folders",
        title="any folders of images and labels, matched by file name",
        roles=(
            Role("source", (), f"labelled images: {WANTED}"),
            Role("source_labels", (), "their label maps, of any of these kinds; may be the same folder for HDF5"),
            Role("target", (), "images of the other domain"),
            Role("target_labels", (), "label maps of all or some of them, for evaluation alone", optional=True),
        ),
        plan=_plan,
        labels="those of --labels",
        split=SPLIT,
        choices=(
            Choice("labels", (), "", "values and classes, background first: '0=background,1=liver,2-9=tumour'"),
            Choice("target_values", (), "", "the same for label maps of the target, where its values are others"),
            Choice(
                "match", (), "", "regular expression for what image and label have in common: '\\d+'; else the name"
            ),
            Choice("patient", (), "", "regular expression for the patient in an image's name; else each is one"),
            Choice("stacks", ("volumes", "sections"), "volumes", "what TIFF stacks and 3D HDF5 arrays are"),
            Choice("image_array", (), "", "name of the image in HDF5 files with several arrays"),
            Choice("label_array", (), "", "name of the label map in HDF5 files with several arrays"),
        ),
    ),
)
