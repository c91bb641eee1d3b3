# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Abdominal organs, BTCV CT and CHAOS T2-SPIR MR, both directions: liver, right and left kidney, spleen.

The task of SIFA (Chen et al., IEEE TMI 39, 2020, doi 10.1109/TMI.2020.2972701). Its test cases are those that its
first author names in https://github.com/cchen-cc/SIFA/issues/34 and 43; with ``--split sifa`` they are evaluated and
all others train. By default the split is by patient, at random, with a seed, and all of the source is used.

CHAOS gives grey values as ranges (63: 55 to 70, and so on) and calls every other value background. Only 0 and the
torso that it names (32: 28 to 35) are taken as background here; anything else is an error. That its ground truth
pictures come in the order of the slices' file names is how public code reads them; where names agree, they must all
agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, Volume, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import order_slices, read_dicom, read_mask, read_volume
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

BTCV = Owner(
    name="BTCV (Multi-Atlas Labeling Beyond the Cranial Vault), abdomen",
    url="https://www.synapse.org/#!Synapse:syn3193805",
    licence="terms of the challenge on Synapse, after registration; see there",
    citation="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault Workshop and Challenge (2015), "
    "doi 10.7303/syn3193805",
)
CHAOS = Owner(
    name="CHAOS",
    url="https://zenodo.org/records/3431873",
    licence="CC BY-NC-SA 4.0",
    citation="Kavur et al., Med Image Anal 69 (2021) 101950, doi 10.1016/j.media.2020.101950; data: "
    "doi 10.5281/zenodo.3431873",
)
BTCV_TABLE = LabelTable.of(
    (0, "background", 0, "background"),
    (1, "spleen", 4, "spleen"),
    (2, "right kidney", 2, "right kidney"),
    (3, "left kidney", 3, "left kidney"),
    (4, "gallbladder", 0, "background"),
    (5, "esophagus", 0, "background"),
    (6, "liver", 1, "liver"),
    (7, "stomach", 0, "background"),
    (8, "aorta", 0, "background"),
    (9, "inferior vena cava", 0, "background"),
    (10, "portal vein and splenic vein", 0, "background"),
    (11, "pancreas", 0, "background"),
    (12, "right adrenal gland", 0, "background"),
    (13, "left adrenal gland", 0, "background"),
)
CHAOS_TABLE = LabelTable.of(
    (0, "background", 0, "background"),
    ((28, 35), "torso (32)", 0, "background"),
    ((55, 70), "liver (63)", 1, "liver"),
    ((110, 135), "right kidney (126)", 2, "right kidney"),
    ((175, 200), "left kidney (189)", 3, "left kidney"),
    ((240, 255), "spleen (252)", 4, "spleen"),
)
BTCV_CASES, CHAOS_CASES = 30, 20
BTCV_LAYOUT = "RawData/Training/img/img0001.nii.gz ... and RawData/Training/label/label0001.nii.gz ... (30 pairs)"
CHAOS_LAYOUT = (
    "Train_Sets/MR/<id>/T2SPIR/DICOM_anon/*.dcm and Train_Sets/MR/<id>/T2SPIR/Ground/*.png (20 patients; the test sets "
    "have no ground truth)"
)
SIFA_TEST = {
    "ct": frozenset(f"btcv_{number:04d}" for number in (1, 9, 30, 32, 33, 39)),
    "mr": frozenset(f"chaos_{number:02d}" for number in (1, 13, 32, 38)),
}
SIFA_SPLIT = "test cases of SIFA: CT 1, 9, 30, 32, 33, 39; MR 1, 13, 32, 38"
SPLIT = f"by patient, at random with a seed: 80 % of the target for training, 20 % for evaluation; or {SIFA_SPLIT}"
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}

Maker = Callable[[Part], Case]


def _btcv(folder: Path, *, incomplete: bool) -> dict[str, Maker]:
    root = folders.find_root(folder, ("img", "label"), BTCV.name)
    images = folders.matching(root / "img", r"img(\d{4})\.nii(?:\.gz)?")
    labels = folders.matching(root / "label", r"label(\d{4})\.nii(?:\.gz)?")
    folders.require_same(images, labels, root, "CT")
    folders.require_count(len(images), BTCV_CASES, root, "labelled CT(s)", partial=incomplete)
    return {f"btcv_{key}": partial(_btcv_case, f"btcv_{key}", images[key], labels[key]) for key in images}


def _btcv_case(name: str, image: Path, label: Path, part: Part) -> Case:
    return Case(name, name, part, (image, label), image, labelled(part, partial(read_volume, label)))


def _chaos(folder: Path, *, incomplete: bool) -> dict[str, Maker]:
    root = folders.find_root(folder, ("MR",), CHAOS.name) / "MR"
    patients = folders.matching(root, r"(\d+)")
    folders.require_count(len(patients), CHAOS_CASES, root, "MR patient(s)", partial=incomplete)
    makers: dict[str, Maker] = {}
    for key in sorted(patients, key=int):
        place = patients[key] / "T2SPIR"
        slices = list(folders.matching(place / "DICOM_anon", r"(.+)\.dcm").values())
        truth = list(folders.matching(place / "Ground", r"(.+)\.png").values())
        pairs = pair_slices(slices, truth, place)
        name = f"chaos_{int(key):02d}"
        makers[name] = partial(_chaos_case, name, pairs, place / "Ground")
    return makers


def pair_slices(slices: list[Path], truth: list[Path], folder: Path) -> dict[Path, Path]:
    """Return the ground truth of each slice, both taken in the order of their names.

    Args:
        slices: DICOM files.
        truth: pictures.
        folder: that holds both, for messages.

    Raises:
        InputError: other numbers of both, or names of which some agree and some do not.
    """
    if len(slices) != len(truth) or not slices:
        raise InputError(
            f"{folder}: found {len(slices)} DICOM slice(s) and {len(truth)} ground truth picture(s); wanted as many."
        )
    pairs = dict(zip(sorted(slices, key=_number), sorted(truth, key=_number), strict=True))
    same = [one.stem == other.stem for one, other in pairs.items()]
    if any(same) and not all(same):
        first = next(one for one, agrees in zip(pairs, same, strict=True) if not agrees)
        raise InputError(f"{first}: found no ground truth of that name; wanted one for each slice.")
    return pairs


def _number(path: Path) -> tuple[tuple[int, ...], str]:
    return tuple(int(digits) for digits in re.findall(r"\d+", path.stem)), path.stem


def _chaos_case(name: str, pairs: dict[Path, Path], ground: Path, part: Part) -> Case:
    slices = tuple(pairs)
    # Pictures of the evaluation alone belong to what a training case depends on not at all.
    inputs = slices if part == "target_train" else (*slices, *pairs.values(), ground)
    read = partial(read_dicom, slices)
    return Case(name, name, part, inputs, read, labelled(part, partial(_read_ground, pairs)))


def _read_ground(pairs: dict[Path, Path]) -> Volume:
    """Stack the pictures in the order of the slices' positions; a picture's rows are the slice's rows."""
    ordered = order_slices(tuple(pairs))
    stack = np.stack([read_mask(pairs[path]).array for path in ordered])
    return Volume(stack.transpose(2, 1, 0), read_dicom(ordered).affine)


def _plan(source: str, request: Request) -> Plan:
    readers = {"ct": (_btcv, BTCV_TABLE), "mr": (_chaos, CHAOS_TABLE)}
    target = "mr" if source == "ct" else "ct"
    read, source_table = readers[source]
    makers = read(request.folders["source"], incomplete=request.partial)
    published = request.choices["split"] == "sifa"
    left_out = SIFA_TEST[source] if published else frozenset()
    cases = [make("source") for name, make in makers.items() if name not in left_out]
    read, target_table = readers[target]
    makers = read(request.folders["target"], incomplete=request.partial)
    if published:
        parts: dict[str, Part] = {n: "target_val" if n in SIFA_TEST[target] else "target_train" for n in makers}
        split = f"Published: {SIFA_SPLIT}. All other {source.upper()} are the source, all other {target.upper()} train."
    else:
        parts = split_patients(makers, _SHARES, request.seed)
        split = (
            f"All labelled {source.upper()} are the source. {target.upper()}: 80 % for training, 20 % for evaluation, "
            f"by patient, at random (seed {request.seed}), not the published {SIFA_SPLIT}."
        )
    cases += [make(parts[name]) for name, make in makers.items()]
    return Plan(
        title=f"Abdomen, {source.upper()} to {target.upper()}",
        tables={"source": source_table, "target": target_table},
        cases=tuple(cases),
        split=split,
        modality={"source": source.upper(), "target": target.upper()},
        notes=("Whole volumes; CT shows more of the body than MR, published works crop it to the organs.",),
    )


_ROLES = {"ct": ((BTCV,), BTCV_LAYOUT), "mr": ((CHAOS,), CHAOS_LAYOUT)}
RECIPES = tuple(
    Recipe(
        name=f"abdomen_{source}2{target}",
        title=f"four abdominal organs, {source.upper()} to {target.upper()}",
        roles=(Role("source", *_ROLES[source]), Role("target", *_ROLES[target])),
        plan=partial(_plan, source),
        labels="liver, right kidney, left kidney, spleen",
        split=SPLIT,
        choices=(Choice("split", ("random", "sifa"), "random", "which cases are evaluated; sifa: those of SIFA"),),
    )
    for source, target in (("ct", "mr"), ("mr", "ct"))
)
