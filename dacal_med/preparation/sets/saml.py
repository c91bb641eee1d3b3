# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Multi-site prostate MR as collected for SAML: any of six sites to any other.

The site folders and ``CaseXX`` names are those that public code reads; one site writes ``_Segmentation`` with a
capital. Zones (1 and 2) become the whole gland. No split for adaptation was published: it is by case, at random, with
a seed. That a case is a patient is not stated by the owners.
"""

from __future__ import annotations

from fractions import Fraction
from functools import partial
from pathlib import Path

from dacal_med.io.errors import InputError
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

OWNER = Owner(
    name="Multi-site Dataset for Prostate MRI Segmentation (SAML)",
    url="https://liuquande.github.io/SAML/",
    licence="that of its sources (NCI-ISBI 2013, I2CVB, PROMISE12), for research; none stated for the collection",
    citation="Liu, Dou and Heng, Shape-aware Meta-learning for Generalizing Prostate MRI Segmentation to Unseen "
    "Domains, MICCAI 2020, doi 10.1007/978-3-030-59713-9_46; Liu et al., IEEE TMI 39 (2020) 2713, "
    "doi 10.1109/TMI.2020.2974574",
)
TABLE = LabelTable.of(
    (0, "background", 0, "background"), (1, "prostate or its zone", 1, "prostate"), (2, "zone", 1, "prostate")
)
SITES = {"RUNMC": 30, "BMC": 30, "I2CVB": 19, "UCL": 13, "BIDMC": 12, "HK": 12}
LAYOUT = "the folders RUNMC, BMC, I2CVB, UCL, BIDMC, HK with Case00.nii.gz and Case00_segmentation.nii.gz ..."
SPLIT = "by case, at random with a seed: 80 % of the target site for training, 20 % for evaluation (none is published)"
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}


def _pairs(root: Path, site: str, *, incomplete: bool) -> dict[str, tuple[Path, Path]]:
    folder = root / site
    images = folders.matching(folder, r"case(\d+)\.nii(?:\.gz)?")
    labels = folders.matching(folder, r"case(\d+)_segmentation\.nii(?:\.gz)?")
    folders.require_same(images, labels, folder, "case")
    folders.require_count(len(images), SITES[site], folder, "case(s)", partial=incomplete)
    return {f"{site}_{key}": (images[key], labels[key]) for key in images}


def _case(name: str, pair: tuple[Path, Path], part: Part) -> Case:
    return Case(name, name, part, pair, pair[0], labelled(part, partial(read_volume, pair[1])))


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_site"], request.choices["target_site"]
    if source == target:
        raise InputError(f"--source-site and --target-site: found {source} for both; wanted two sites.")
    root = folders.find_root(request.folders["data"], (source, target), OWNER.name)
    cases = [_case(name, pair, "source") for name, pair in _pairs(root, source, incomplete=request.partial).items()]
    pairs = _pairs(root, target, incomplete=request.partial)
    parts = split_patients(pairs, _SHARES, request.seed)
    cases += [_case(name, pair, parts[name]) for name, pair in pairs.items()]
    return Plan(
        title=f"Prostate, {source} to {target}",
        tables={"source": TABLE, "target": TABLE},
        cases=tuple(cases),
        split=f"All of {source} is the source. {target}: 80 % for training, 20 % for evaluation, by case, at random "
        f"(seed {request.seed}); no split is published.",
        modality={"source": "MR", "target": "MR"},
    )


RECIPES = (
    Recipe(
        name="prostate_site2site",
        title="prostate in T2 MR, one site to another",
        roles=(Role("data", (OWNER,), LAYOUT),),
        plan=_plan,
        labels="prostate",
        split=SPLIT,
        choices=(
            Choice("source_site", tuple(SITES), "RUNMC", "where the labelled images are from"),
            Choice("target_site", tuple(SITES), "BIDMC", "where the others are from"),
        ),
    ),
)
