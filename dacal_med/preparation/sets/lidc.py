# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""LIDC-IDRI: lung nodules in chest CT, one scanner vendor to another, or with contrast agent to without.

The folder is what TCIA ships: a series of DICOM slices in a folder of its own, wherever it lies, and an XML file for
each CT with what up to four radiologists drew, beside the slices or in a folder of their own (LIDC-XML-only). Vendor,
contrast agent and patient are read from the DICOM headers. The rule that makes masks of the drawings is in
:mod:`dacal_med.preparation.lidc_xml`.

M3DA (arXiv 2502.17029) goes from CT with contrast agent to CT without. Its masks are those of pylidc, in which half of
the readers *who marked a nodule* decide, and its ids are in its repository; neither is reproduced here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pydicom

from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.preparation import folders
from dacal_med.preparation.cases import Case, Part, Plan, Volume, labelled
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.lidc_xml import consensus, series_of
from dacal_med.preparation.reading import order_slices, read_dicom
from dacal_med.preparation.recipe import Choice, Owner, Recipe, Request, Role
from dacal_med.preparation.split import split_patients

OWNER = Owner(
    name="LIDC-IDRI",
    url="https://www.cancerimagingarchive.net/collection/lidc-idri/",
    licence="CC BY 3.0",
    citation="Armato et al., Med Phys 38 (2011) 915, doi 10.1118/1.3528204; data: doi "
    "10.7937/K9/TCIA.2015.LO9QL9SX; Clark et al., J Digit Imaging 26 (2013) 1045",
)
TABLE = LabelTable.of((0, "fewer readers than the rule wants", 0, "background"), (1, "nodule", 1, "nodule"))
VENDORS = ("ge", "siemens", "philips", "toshiba")
AGENTS = ("contrast", "no_contrast")
SCANS = 1018
RULES = {"half": Fraction(1, 2), "any": Fraction(0)}
LAYOUT = (
    "LIDC-IDRI/LIDC-IDRI-0001/<study>/<series>/*.dcm ... (1018 CT series; radiographs among them are passed over), "
    "with the XML of each CT beside its slices"
)
SPLIT = "by patient, at random with a seed: 80 % of the target for training, 20 % for evaluation"
_SHARES: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}
_NONE = ("", "none", "no")


@dataclass(frozen=True)
class Scan:
    """A CT series.

    Attributes:
        folder: of its slices.
        series: its SeriesInstanceUID.
        patient: whose it is.
        vendor: manufacturer as the header has it, lower case.
        agent: "contrast" or "no_contrast".
    """

    folder: Path
    series: str
    patient: str
    vendor: str
    agent: str

    def of(self, domain: str) -> bool:
        """Whether it belongs to a vendor, or has or lacks contrast agent."""
        return self.agent == domain if domain in AGENTS else self.vendor.startswith(domain)

    def slices(self) -> list[Path]:
        """Its slices by name."""
        return [path for path in folders.entries(self.folder) if path.suffix.lower() == ".dcm"]


def find_scans(root: Path) -> list[Scan]:
    """Return every CT series below a folder, by patient.

    Raises:
        InputError: a slice is unreadable or lacks what says whose it is.
    """
    places = sorted({path.parent for path in root.rglob("*.dcm") if not path.name.startswith(".")})
    scans: list[Scan] = []
    for place in places:
        path = next(file for file in folders.entries(place) if file.suffix.lower() == ".dcm")
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
            if header.Modality != "CT":
                continue
            agent = str(header.get("ContrastBolusAgent", "") or "").strip().lower()
            scans.append(
                Scan(
                    place,
                    str(header.SeriesInstanceUID),
                    str(header.PatientID),
                    str(header.Manufacturer).strip().lower(),
                    AGENTS[agent in _NONE],
                )
            )
        except (OSError, AttributeError, pydicom.errors.InvalidDicomError) as error:
            raise InputError(f"{path}: cannot be read as a DICOM slice of LIDC-IDRI ({error}).") from error
    return sorted(scans, key=lambda scan: (scan.patient, scan.series))


def _annotations(places: Sequence[Path]) -> dict[str, Path]:
    """XML files of CT by SeriesInstanceUID."""
    found: dict[str, Path] = {}
    for path in sorted(path for place in places for path in place.rglob("*.xml")):
        series = series_of(path)
        if series is not None:
            found.setdefault(series, path)
    return found


def _usable(
    scans: Sequence[Scan], annotations: dict[str, Path], *, incomplete: bool
) -> tuple[dict[str, tuple[Scan, list[Path], Path]], list[str]]:
    """Slices in order and annotation of each scan by case name, and the scans left out of an incomplete download."""
    chosen: dict[str, tuple[Scan, list[Path], Path]] = {}
    left_out: list[str] = []
    for scan in scans:
        before = [name for name, (other, _, _) in chosen.items() if other.patient == scan.patient]
        try:
            if scan.series not in annotations:
                raise InputError(f"{scan.folder}: found no XML of the series {scan.series}; wanted one for each CT.")
            ordered = order_slices(scan.slices())
        except InputError as error:
            if not incomplete:
                raise InputError(f"{error} (--partial leaves such scans out)") from error
            left_out.append(f"{scan.patient}, {scan.folder.name}")
            continue
        name = scan.patient if not before else f"{scan.patient}_{len(before) + 1}"
        chosen[name] = (scan, ordered, annotations[scan.series])
    return chosen, left_out


def _read_mask(slices: Sequence[Path], annotation: Path, rule: Fraction) -> Volume:
    volume = read_dicom(slices)
    uids = [str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID) for path in slices]
    mask = consensus(annotation, uids, volume.array.shape[:2], rule)
    return Volume(mask.astype(np.uint8), volume.affine)


def _plan(request: Request) -> Plan:
    source, target = request.choices["source_domain"], request.choices["target_domain"]
    if source == target or (source in AGENTS) != (target in AGENTS):
        raise InputError(
            f"--source-domain and --target-domain: found {source} and {target}; wanted two of {', '.join(VENDORS)}, or "
            f"{' and '.join(AGENTS)}."
        )
    root = given_path(request.folders["data"], home=True)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; wanted {LAYOUT}.")
    scans = find_scans(root)
    if not scans:
        raise InputError(f"{root}: found no CT series ({folders.listing(root)}); wanted {LAYOUT}.")
    folders.require_count(len(scans), SCANS, root, "CT series", partial=request.partial)
    annotations = _annotations(
        [root, *([given_path(request.folders["xml"], home=True)] if "xml" in request.folders else [])]
    )
    chosen = [scan for scan in scans if scan.of(source) or scan.of(target)]
    usable, left_out = _usable(chosen, annotations, incomplete=request.partial)
    sources = {scan.patient for scan, _, _ in usable.values() if scan.of(source)}
    both = {scan.patient for scan, _, _ in usable.values() if scan.of(target)} & sources
    drawn = split_patients(
        [scan.patient for scan, _, _ in usable.values() if scan.of(target) and scan.patient not in both],
        _SHARES,
        request.seed,
    )
    rule = RULES[request.choices["readers"]]
    cases = []
    for name, (scan, slices, annotation) in usable.items():
        part: Part | None = "source" if scan.of(source) else drawn.get(scan.patient)
        if part is not None:
            label = labelled(part, partial(_read_mask, slices, annotation, rule))
            inputs = tuple(slices) if part == "target_train" else (*slices, annotation)
            cases.append(Case(name, scan.patient, part, inputs, partial(read_dicom, slices), label))
    notes = ["A reader's outline is the first pixel outside the nodule: the mask is what lies within."]
    if both:
        notes.append(
            f"Patients with scans of both domains, whose target scans are left out: {', '.join(sorted(both))}."
        )
    if left_out:
        notes.append(f"Scans left out, without annotation or with uneven slices: {'; '.join(left_out)}.")
    return Plan(
        title=f"Lung nodules, {source.replace('_', ' ')} to {target.replace('_', ' ')}",
        tables={"source": TABLE, "target": TABLE},
        cases=tuple(cases),
        split=f"All scans of {source} are the source. {target}: 80 % of the patients for training, 20 % for "
        f"evaluation, at random (seed {request.seed}); M3DA's ids were not taken over.",
        modality={"source": "CT", "target": "CT"},
        notes=tuple(notes),
    )


RECIPES = (
    Recipe(
        name="lidc_domain2domain",
        title="lung nodules in chest CT, one vendor to another or with contrast agent to without",
        roles=(
            Role("data", (OWNER,), LAYOUT),
            Role("xml", (OWNER,), "LIDC-XML-only, where the XML files are not beside the slices", optional=True),
        ),
        plan=_plan,
        labels="nodule (3 mm or more, voxels that at least half of the readers drew)",
        split=SPLIT,
        choices=(
            Choice("source_domain", (*VENDORS, *AGENTS), "ge", "vendor, or with or without contrast agent"),
            Choice("target_domain", (*VENDORS, *AGENTS), "siemens", "vendor, or with or without contrast agent"),
            Choice(
                "readers", tuple(RULES), "half", "a voxel is nodule if at least half of the readers, or any, say so"
            ),
        ),
    ),
)
