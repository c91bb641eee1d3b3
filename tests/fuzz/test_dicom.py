# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Malformed DICOM series at a site, in a data set and in preparation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from dacal_med.data import check_data, load_datalist
from dacal_med.io.errors import InputError
from dacal_med.io.reading import read_header, read_image
from dacal_med.preparation.formats import find_images
from tests.deploy.runtime.builders import change, export_folder, inference, write_enhanced, write_series
from tests.fuzz.images import AFFINE, good_array
from tests.fuzz.outcomes import FROM_BELOW, attempt, in_time
from tests.fuzz.test_datalists import GOOD

Break = Callable[[list[Path]], object]


def attributes(**values: object) -> Break:
    """Change attributes of one slice in the middle."""
    return lambda files: change(files[3], **values)


def everywhere(**values: object) -> Break:
    return lambda files: [change(file, **values) for file in files]


def content(edit: Callable[[bytes], bytes], index: int = 3) -> Break:
    return lambda files: files[index].write_bytes(edit(files[index].read_bytes()))


def flip(position: int) -> Callable[[bytes], bytes]:
    def edit(data: bytes) -> bytes:
        return data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :]

    return edit


def syntax(uid: bytes) -> Break:
    """Another transfer syntax, of as many characters."""
    return content(lambda data: data.replace(b"1.2.840.10008.1.2.1\0", uid + b"\0", 1))


SERIES: dict[str, Break] = {
    "nothing": lambda files: None,
    "an empty file": content(lambda data: b""),
    "text": content(lambda data: b"no DICOM"),
    "magic alone": content(lambda data: data[:132]),
    "zeros": content(lambda data: bytes(2000)),
    "cut in the meta header": content(lambda data: data[:200]),
    "cut in the header": content(lambda data: data[:700]),
    "cut in the pixels": content(lambda data: data[:-20]),
    "cut before the pixels": content(lambda data: data[: -2 * 72 - 12]),
    "pixels behind the end": content(lambda data: data + bytes(40)),
    "all cut": lambda files: [file.write_bytes(file.read_bytes()[:-20]) for file in files],
    **{f"byte {position} changed": content(flip(position)) for position in (128, 140, 160, 250, 400, 500, 600, 900)},
    "another transfer syntax": syntax(b"1.2.840.10008.1.2.5"),
    "the other byte order": syntax(b"1.2.840.10008.1.2.2"),
    "an unknown transfer syntax": syntax(b"1.2.3.4.5.6.7.8.9.1"),
    "no rows": attributes(Rows=None),
    "rows of 0": attributes(Rows=0),
    "too many rows": attributes(Rows=9),
    "rows of gigabytes": everywhere(Rows=65535, Columns=65535),
    "no columns": attributes(Columns=None),
    "no pixels": attributes(PixelData=None),
    "no position": attributes(ImagePositionPatient=None),
    "a position of two": attributes(ImagePositionPatient=[1.0, 2.0]),
    "no position anywhere": everywhere(ImagePositionPatient=None),
    "one position for all": everywhere(ImagePositionPatient=[0.0, 0.0, 0.0]),
    "a position far away": attributes(ImagePositionPatient=[0.0, 0.0, 1e6]),
    "no orientation": attributes(ImageOrientationPatient=None),
    "an orientation of zeros": everywhere(ImageOrientationPatient=[0.0] * 6),
    "an orientation of parallels": everywhere(ImageOrientationPatient=[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
    "another orientation": attributes(ImageOrientationPatient=[0.0, 1.0, 0.0, 1.0, 0.0, 0.0]),
    "no spacing": attributes(PixelSpacing=None),
    "spacing of 0": everywhere(PixelSpacing=[0.0, 0.0]),
    "spacing below 0": everywhere(PixelSpacing=[-1.0, 1.0]),
    "one spacing": everywhere(PixelSpacing=[1.0]),
    "another spacing": attributes(PixelSpacing=[9.0, 9.0]),
    "a slope of 0": everywhere(RescaleSlope=0.0),
    "a huge slope": everywhere(RescaleSlope=1e38),
    "no bits": attributes(BitsAllocated=None),
    "odd bits": attributes(BitsAllocated=17),
    "fewer bits": attributes(BitsAllocated=8, BitsStored=8, HighBit=7),
    "colours": attributes(SamplesPerPixel=3, PhotometricInterpretation="RGB"),
    "an unknown interpretation": attributes(PhotometricInterpretation="MAGIC"),
    "frames that are not there": attributes(NumberOfFrames=5),
    "a missing slice": lambda files: files[3].unlink(),
    "a slice twice": lambda files: (files[3].parent / "again.dcm").write_bytes(files[3].read_bytes()),
    "one slice": lambda files: [file.unlink() for file in files[1:]],
    "two series": attributes(SeriesInstanceUID=generate_uid(entropy_srcs=["x"])),
    "no series": attributes(SeriesInstanceUID=None),
    "two frames of reference": attributes(FrameOfReferenceUID=generate_uid(entropy_srcs=["y"])),
    "no class": everywhere(SOPClassUID=None),
    "a picture among them": lambda files: (files[3].parent / "readme.txt").write_text("text"),
}
ENHANCED: dict[str, Callable[[pydicom.Dataset], object]] = {
    "no functional groups": lambda d: delattr(d, "PerFrameFunctionalGroupsSequence"),
    "no shared groups": lambda d: delattr(d, "SharedFunctionalGroupsSequence"),
    "a functional group less": lambda d: d.PerFrameFunctionalGroupsSequence.pop(),
    "an empty functional group": lambda d: d.PerFrameFunctionalGroupsSequence[1].clear(),
    "more frames than pixels": lambda d: setattr(d, "NumberOfFrames", 99),
    "fewer frames than pixels": lambda d: setattr(d, "NumberOfFrames", 3),
    "frames of 0": lambda d: setattr(d, "NumberOfFrames", 0),
    "frames below 0": lambda d: setattr(d, "NumberOfFrames", -2),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return export_folder(tmp_path_factory.mktemp("site") / "export")


def series(folder: Path, what: str) -> Path:
    place = folder / "series"
    if what in SERIES:
        SERIES[what](write_series(place, good_array(), AFFINE))
    else:
        place.mkdir()
        write_enhanced(place / "all.dcm", good_array(), AFFINE, range(good_array().shape[2]))
        dataset = pydicom.dcmread(place / "all.dcm")
        ENHANCED[what](dataset)
        dataset.save_as(place / "all.dcm")
    return place


@pytest.mark.parametrize("what", [*SERIES, *ENHANCED])
@pytest.mark.filterwarnings("ignore")
def test_a_site_segments_a_series_or_says_why_not(what, site, tmp_path):
    place, out = series(tmp_path, what), tmp_path / "out"
    with in_time():
        try:
            cases = inference(site, place, out).run()["cases"]
        except InputError as error:  # nothing in the folder that is an image
            assert "dataset_dir" in str(error)
            cases = []
    for case in cases:
        written = sorted(path.name for path in out.glob(f"{case['case']}*"))
        if case["status"] == "ok":
            assert written == sorted([f"{case['case']}.json", *filter(None, case["outputs"].values())])
            assert case["input"]["shape"][:2] == [9, 8]
        else:
            assert written == [f"{case['case']}.json"]
            assert not re.match(FROM_BELOW, case["error"]), case["error"]
    assert not [path for path in tmp_path.rglob(".*")]


@pytest.mark.parametrize("what", [*SERIES, *ENHANCED])
@pytest.mark.filterwarnings("ignore")
def test_a_data_set_reads_a_series_or_says_why_not(what, tmp_path):
    place = series(tmp_path, what)
    header = attempt(lambda: read_header(place), str(place))
    found = attempt(lambda: read_image(place), str(place))
    if header is not None and found is not None:
        assert found.array.shape == (header.channels, *header.shape)
        assert np.isfinite(found.header.affine).all()


# Whose geometry alone would not show what is wrong, or is what the reader makes of it.
MIXED = {"a missing slice", "one slice", "two series", "no series", "two frames of reference"}
MIXED |= {"an empty file", "another orientation", "another spacing", "no position", "a position far away"}


@pytest.mark.parametrize("what", [*SERIES, *ENHANCED])
@pytest.mark.parametrize("role", ["source", "target_train"])
@pytest.mark.filterwarnings("ignore")
def test_a_training_refuses_a_series_or_sees_it_as_it_is(what, role, tmp_path):
    nib.save(nib.Nifti1Image(good_array(), AFFINE), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image((good_array() > 300).astype(np.uint8), AFFINE), tmp_path / "label.nii")
    place = series(tmp_path, what)
    content = json.loads(json.dumps(GOOD))
    content["source"][0].update(image="a.nii", label="label.nii")
    content["target_train"] = [{"image": "a.nii"}]
    content["target_val"] = []
    content[role][0]["image"] = "series"
    (tmp_path / "datalist.json").write_text(json.dumps(content))
    found = attempt(lambda: check_data(load_datalist(tmp_path), 3, 1, progress=False), str(place), "label.nii")
    if found is not None:
        assert what not in MIXED
        image = read_image(place)
        array, affine = image.array, image.header.affine
        assert array.shape == (1, *good_array().shape)
        np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), np.linalg.norm(AFFINE[:3, :3], axis=0))


@pytest.mark.parametrize("what", SERIES)
@pytest.mark.filterwarnings("ignore")
def test_preparation_reads_a_series_or_says_why_not(what, tmp_path):
    place = series(tmp_path, what)

    def read():
        (image,) = find_images(tmp_path, array="", option="", sections=False, labels=False)
        return image.read()

    volume = attempt(read, str(place))
    if volume is not None:
        assert volume.array.ndim == 3
        assert np.isfinite(volume.affine).all()
