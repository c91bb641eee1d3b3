# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""LIDC-IDRI in TCIA's layout: vendors and contrast from headers, masks from outlines of several readers, patients."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pydicom
import pytest

from dacal_med.io.errors import InputError
from dacal_med.preparation.lidc_xml import consensus, series_of
from tests.preparation.builders import checked, made, names, noise, values_of
from tests.preparation.test_btcv_chaos import slice_file

SIZE, SLICES = (12, 10), 4
Outline = tuple[str, bool, Sequence[tuple[int, int]]]


def box(x0: int, x1: int, y0: int, y1: int) -> list[tuple[int, int]]:
    """The chain of pixels around a box, whose inside is x0 + 1 ... x1 - 1."""
    top = [(x, y0) for x in range(x0, x1)] + [(x1, y) for y in range(y0, y1)]
    return top + [(x, y1) for x in range(x1, x0, -1)] + [(x0, y) for y in range(y1, y0, -1)]


def write_xml(path: Path, series: str, readers: Sequence[Sequence[Sequence[Outline]]], kind: str = "Lidc") -> Path:
    """Annotations: readers, their nodules, the outlines of each."""
    lines = [f'<{kind}ReadMessage xmlns="http://www.nih.gov"><ResponseHeader>']
    lines += [f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"]
    for nodules in readers:
        lines.append("<readingSession>")
        for outlines in nodules:
            lines.append("<unblindedReadNodule><noduleID>1</noduleID>")
            for uid, inclusion, points in outlines:
                lines.append(f"<roi><imageSOP_UID>{uid}</imageSOP_UID><inclusion>{str(inclusion).upper()}</inclusion>")
                lines += [f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points]
                lines.append("</roi>")
            lines.append("</unblindedReadNodule>")
        lines.append("<nonNodule><nonNoduleID>2</nonNoduleID></nonNodule></readingSession>")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join([*lines, f"</{kind}ReadMessage>"]))
    return path


def scan(
    root: Path, number: int, vendor: str, agent: str | None = None, series: str = "1", modality: str = "CT"
) -> Path:
    """A series with its XML: three of four readers draw a box on the second slice from below, one a larger one."""
    uid = f"1.2.{number}.{series}"
    place = root / f"LIDC-IDRI-{number:04d}" / f"study-{number}" / f"series-{series}"
    for z in range(SLICES):
        path = place / f"1-{SLICES - z:03d}.dcm"  # names run against positions
        slice_file(path, noise(SIZE[::-1], 10 * number + z), 2.5 * z)
        header = pydicom.dcmread(path)
        header.Modality, header.Manufacturer, header.PatientID = modality, vendor, f"LIDC-IDRI-{number:04d}"
        header.SeriesInstanceUID, header.SOPInstanceUID = uid, f"{uid}.{z}"
        if agent is not None:
            header.ContrastBolusAgent = agent
        header.save_as(path)
    small, large = [(f"{uid}.1", True, box(2, 6, 3, 7))], [(f"{uid}.1", True, box(1, 8, 2, 8))]
    point = [(f"{uid}.2", True, [(5, 5)])]
    write_xml(place / "069.xml", uid, [[small, point], [small], [large], []])
    return place


@pytest.fixture
def lidc(tmp_path: Path) -> Path:
    root = tmp_path / "in" / "LIDC-IDRI"
    for number in range(1, 4):
        scan(root, number, "GE MEDICAL SYSTEMS", "IV")
    for number in range(4, 9):
        scan(root, number, "SIEMENS", None if number % 2 else "NONE")
    scan(root, 1, "GE MEDICAL SYSTEMS", series="9", modality="DX")
    return root


def test_one_vendor_to_another(lidc: Path, tmp_path: Path):
    data = made("lidc_domain2domain", {"data": lidc}, tmp_path / "out", partial=True)
    assert data.class_names == ("background", "nodule")
    assert names(data.source) == ["LIDC-IDRI-0001", "LIDC-IDRI-0002", "LIDC-IDRI-0003"]
    assert (len(data.target_train), len(data.target_val)) == (4, 1)
    image, label = (values_of(data.source[1][part]) for part in ("image", "label"))
    pixels = np.stack([noise(SIZE[::-1], 20 + z).T for z in range(SLICES)], axis=-1)
    np.testing.assert_array_equal(image, 2 * pixels.astype(int) - 7)
    wanted = np.zeros((*SIZE, SLICES))
    wanted[3:6, 4:7, 1] = 1
    np.testing.assert_array_equal(label, wanted)
    assert data.modality == {"source": "CT", "target": "CT"}
    checked(data)


def test_contrast_agent_to_none_and_back(lidc: Path, tmp_path: Path):
    given = {"source_domain": "contrast", "target_domain": "no_contrast", "readers": "any"}
    data = made("lidc_domain2domain", {"data": lidc}, tmp_path / "out", partial=True, **given)
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [3, 4, 1]
    label = values_of(data.source[0]["label"])
    assert label[2:8, 3:8, 1].all() and label.sum() == 6 * 5
    back = {"source_domain": "no_contrast", "target_domain": "contrast"}
    data = made("lidc_domain2domain", {"data": lidc}, tmp_path / "back", partial=True, **back)
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [5, 2, 1]


def test_a_patient_scanned_by_both_vendors_is_in_the_source_alone(lidc: Path, tmp_path: Path):
    scan(lidc, 4, "GE MEDICAL SYSTEMS", series="2")
    scan(lidc, 1, "GE MEDICAL SYSTEMS", series="2")
    data = made("lidc_domain2domain", {"data": lidc}, tmp_path / "out", partial=True)
    found = names(data.source)
    assert found[:2] == ["LIDC-IDRI-0001", "LIDC-IDRI-0001_2"] and found[-1].startswith("LIDC-IDRI-0004")
    assert not [name for name in names([*data.target_train, *data.target_val]) if name.startswith("LIDC-IDRI-0004")]
    assert "left out: LIDC-IDRI-0004." in (tmp_path / "out" / "dataset.md").read_text()


def test_annotations_in_a_folder_of_their_own(lidc: Path, tmp_path: Path):
    xml = tmp_path / "LIDC-XML-only"
    for number, path in enumerate(sorted(lidc.rglob("*.xml"))):
        (xml / "157").mkdir(parents=True, exist_ok=True)
        path.rename(xml / "157" / f"{number:03d}.xml")
    data = made("lidc_domain2domain", {"data": lidc, "xml": xml}, tmp_path / "out", partial=True)
    assert len(data.source) == 3
    with pytest.raises(InputError, match="found 0 patient"):  # every scan is left out
        made("lidc_domain2domain", {"data": lidc}, tmp_path / "other", partial=True)


def test_bad_folders_are_refused(lidc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(**options: str) -> None:
        made("lidc_domain2domain", {"data": lidc}, tmp_path / "out", **options)

    with pytest.raises(InputError, match=r"found 8 CT series; wanted 1018 \(--partial"):
        run()
    with pytest.raises(InputError, match="found ge and contrast; wanted two of ge, siemens, philips, toshiba, or"):
        run(target_domain="contrast")
    with pytest.raises(InputError, match="no such folder; wanted LIDC-IDRI/LIDC-IDRI-0001"):
        made("lidc_domain2domain", {"data": tmp_path / "missing"}, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="found no CT series"):
        made("lidc_domain2domain", {"data": tmp_path / "empty"}, tmp_path / "out")

    # A complete download with a gap, then one without an annotation.
    monkeypatch.setattr("dacal_med.preparation.sets.lidc.SCANS", 8)
    place = next(lidc.glob("LIDC-IDRI-0002/*/series-1"))
    gap = place / "1-002.dcm"
    kept = gap.read_bytes()
    gap.unlink()
    with pytest.raises(InputError, match=r"where others are 3.75 mm apart.*--partial leaves such scans out"):
        run()
    data = made("lidc_domain2domain", {"data": lidc}, tmp_path / "gap", partial=True)
    assert names(data.source) == ["LIDC-IDRI-0001", "LIDC-IDRI-0003"]
    assert "uneven slices: LIDC-IDRI-0002" in (tmp_path / "gap" / "dataset.md").read_text()
    gap.write_bytes(kept)
    (place / "069.xml").unlink()
    with pytest.raises(InputError, match=r"series-1: found no XML of the series 1\.2\.2\.1; wanted one for each CT"):
        run()


# Masks by hand

UIDS = ["a", "b"]


def drawn(path: Path, readers: Sequence[Sequence[Sequence[Outline]]], share: Fraction = Fraction(1, 2)) -> np.ndarray:
    return consensus(write_xml(path, "1.2", readers), UIDS, SIZE, share)


def test_half_of_the_readers_are_enough_and_fewer_are_not(tmp_path: Path):
    one = [[("b", True, box(1, 5, 1, 5))]]
    two, three = (drawn(tmp_path / "x.xml", [one] * n + [[]] * (4 - n)) for n in (2, 3))
    assert np.argwhere(two).tolist() == [[x, y, 1] for x in (2, 3, 4) for y in (2, 3, 4)]
    assert np.array_equal(two, three)
    assert not drawn(tmp_path / "x.xml", [one, [], [], []]).any()
    assert drawn(tmp_path / "x.xml", [one, [], [], []], Fraction(0)).sum() == 9
    assert drawn(tmp_path / "x.xml", [one, []]).sum() == 9, "one of two is half"
    assert not drawn(tmp_path / "x.xml", [[], []], Fraction(0)).any()


def test_holes_and_outlines_with_gaps(tmp_path: Path):
    hole = [[("a", False, box(3, 7, 3, 7)), ("a", True, box(1, 9, 1, 9))]]
    found = drawn(tmp_path / "x.xml", [hole])
    assert found[:, :, 0].sum() == 7 * 7 - 3 * 3 and not found[4:7, 4:7].any() and found[3, 3, 0]
    corners = [(1, 1), (5, 1), (5, 5), (1, 5)]
    assert drawn(tmp_path / "x.xml", [[[("a", True, corners)]]]).sum() == 9


def test_a_reader_s_nodules_count_once_where_they_overlap(tmp_path: Path):
    twice = [[("a", True, box(1, 5, 1, 5))], [("a", True, box(2, 6, 1, 5))]]
    assert not drawn(tmp_path / "x.xml", [twice, [], [], []]).any()
    assert drawn(tmp_path / "x.xml", [twice]).sum() == 4 * 3


def test_bad_annotations_are_refused(tmp_path: Path):
    path = tmp_path / "x.xml"
    with pytest.raises(InputError, match="found an outline on the slice 'c'; wanted slices of its series alone"):
        drawn(path, [[[("c", True, box(1, 5, 1, 5))]]])
    for outline in (box(9, 12, 1, 5), box(1, 5, 7, 10), [(-1, 2), (4, 2)], [(1, -1), (4, 2)]):
        with pytest.raises(InputError, match=r"x\.xml: found an outline from .*; wanted pixels below \(12, 10\)"):
            drawn(path, [[[("a", True, outline)]]])
    with pytest.raises(InputError, match="found no readingSession"):
        drawn(path, [])
    path.write_text(path.read_text().replace("1.2", "1.2<"))
    with pytest.raises(InputError, match=r"x\.xml: cannot be read as XML"):
        series_of(path)
    write_xml(path, "1.2", [[[("a", True, [(1, 2), (4, 2)])]]])
    path.write_text(path.read_text().replace("<xCoord>4", "<xCoord>four"))
    with pytest.raises(InputError, match="found xCoord = 'four'; wanted a whole number"):
        consensus(path, UIDS, SIZE, Fraction(1, 2))


def test_annotations_of_radiographs_are_passed_over(tmp_path: Path):
    assert series_of(write_xml(tmp_path / "a.xml", "1.2", [[]], kind="Idri")) is None
    assert series_of(write_xml(tmp_path / "b.xml", "1.2", [[]])) == "1.2"
