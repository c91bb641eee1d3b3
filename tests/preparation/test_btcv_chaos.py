# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""BTCV and CHAOS: grey values and organs, slices by position, DICOM geometry, pairing of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dacal_med.io.errors import InputError
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import order_slices, read_dicom
from dacal_med.preparation.sets.btcv_chaos import BTCV_TABLE, CHAOS_TABLE, pair_slices
from tests.preparation.builders import AFFINE, affine_of, checked, holding, made, names, noise, save, values_of

ROWS, COLUMNS, SLICES = 6, 7, 5
SPACING = (1.5, 1.25, 5.0)  # between columns, between rows, between slices
GREYS = [63, 126, 189, 252, 55, 70, 110, 135, 175, 200, 240, 255, 28, 32, 35]
CHAOS_BECOMES = [1, 2, 3, 4, 1, 1, 2, 2, 3, 3, 4, 4, 0, 0, 0]


def slice_file(path: Path, pixels: np.ndarray, position: float, tilt: float = 0.0) -> None:
    """A slice with series and instance identifiers of its own, as anonymisation left them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    header.SeriesInstanceUID, header.Modality = generate_uid(), "MR"
    header.Rows, header.Columns = pixels.shape
    header.PixelSpacing, header.SliceThickness = [SPACING[1], SPACING[0]], SPACING[2]
    header.ImageOrientationPatient = [np.cos(tilt), np.sin(tilt), 0.0, -np.sin(tilt), np.cos(tilt), 0.0]
    header.ImagePositionPatient = [-20.0, -30.0, position]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    header.RescaleSlope, header.RescaleIntercept = "2", "-7"
    header.PixelData = pixels.astype(np.int16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path, enforce_file_format=True)


def truth() -> np.ndarray:
    return holding(GREYS, (SLICES, ROWS, COLUMNS), np.uint8)


def patient(folder: Path, number: int) -> None:
    """A T2-SPIR series whose file names run against the positions of the slices."""
    pixels = noise((SLICES, ROWS, COLUMNS), number)
    for index in range(SLICES):
        stem = f"IMG-{number:04d}-{index + 1:05d}"
        slice_file(folder / "DICOM_anon" / f"{stem}.dcm", pixels[index], 40.0 - SPACING[2] * index)
        (folder / "Ground").mkdir(exist_ok=True)
        Image.fromarray(truth()[index]).save(folder / "Ground" / f"{stem}.png")


@pytest.fixture
def chaos(tmp_path: Path) -> Path:
    root = tmp_path / "CHAOS"
    for number in range(1, 6):
        patient(root / "Train_Sets" / "MR" / str(number) / "T2SPIR", number)
    return root


@pytest.fixture
def btcv(tmp_path: Path) -> Path:
    root = tmp_path / "BTCV"
    for number in range(1, 6):
        save(root / "RawData" / "Training" / "img" / f"img{number:04d}.nii.gz", noise(seed=number))
        save(root / "RawData" / "Training" / "label" / f"label{number:04d}.nii.gz", holding(list(range(1, 14))))
    (root / "RawData" / "Testing" / "img").mkdir(parents=True)
    return root


def test_ct_to_mr(btcv: Path, chaos: Path, tmp_path: Path):
    data = made("abdomen_ct2mr", {"source": btcv, "target": chaos}, tmp_path / "out", partial=True)
    assert data.class_names == ("background", "liver", "right kidney", "left kidney", "spleen")
    assert [len(part) for part in (data.source, data.target_train, data.target_val)] == [5, 4, 1]
    original, label = holding(list(range(1, 14))), values_of(data.source[0]["label"])
    becomes = {1: 4, 2: 2, 3: 3, 6: 1}
    for value in range(14):
        assert (label[original == value] == becomes.get(value, 0)).all(), value
    np.testing.assert_allclose(affine_of(data.source[0]["image"]), AFFINE, atol=1e-5)

    # Slices were stored from head to foot: position decides, and each picture stays with its slice.
    number = int(names(data.target_val)[0].removeprefix("chaos_"))
    image, label = (values_of(data.target_val[0][part]) for part in ("image", "label"))
    pixels = noise((SLICES, ROWS, COLUMNS), number)
    np.testing.assert_array_equal(image, 2 * pixels[::-1].transpose(2, 1, 0).astype(int) - 7)
    for value, wanted in zip(GREYS, CHAOS_BECOMES, strict=True):
        assert (label[truth()[::-1].transpose(2, 1, 0) == value] == wanted).all(), value
    affine = affine_of(data.target_val[0]["image"])
    lowest = 40.0 - SPACING[2] * (SLICES - 1)
    wanted_affine = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1.0])
    wanted_affine[:3, 3] = (20.0, 30.0, lowest)  # DICOM counts towards left and back, NIfTI towards right and front
    np.testing.assert_allclose(affine, wanted_affine, atol=1e-4)
    np.testing.assert_array_equal(affine_of(data.target_val[0]["label"]), affine)
    checked(data)


def test_mr_to_ct_and_the_seed(btcv: Path, chaos: Path, tmp_path: Path):
    given = {"source": chaos, "target": btcv}
    data = made("abdomen_mr2ct", given, tmp_path / "a", partial=True)
    again = made("abdomen_mr2ct", given, tmp_path / "b", partial=True)
    assert names(data.source) == [f"chaos_{number:02d}" for number in range(1, 6)]
    assert names(data.target_val) == names(again.target_val)
    assert data.modality == {"source": "MR", "target": "CT"}
    others = {
        names(made("abdomen_mr2ct", given, tmp_path / f"s{seed}", partial=True, seed=seed).target_val)[0]
        for seed in range(1, 6)
    }
    assert len(others) > 1


@pytest.mark.parametrize(
    ("recipe", "source", "evaluated", "trained"),
    [
        ("abdomen_ct2mr", "btcv_%04d", "chaos_01", "chaos_%02d"),
        ("abdomen_mr2ct", "chaos_%02d", "btcv_0001", "btcv_%04d"),
    ],
)
def test_the_split_of_sifa(btcv: Path, chaos: Path, tmp_path: Path, recipe, source, evaluated, trained):
    """Its test cases are evaluated and, of the source, not used; of those it names, the fixtures have number 1."""
    folders = (btcv, chaos) if recipe == "abdomen_ct2mr" else (chaos, btcv)
    given = dict(zip(("source", "target"), folders, strict=True))
    data = made(recipe, given, tmp_path / "out", partial=True, split="sifa")
    assert names(data.source) == [source % number for number in range(2, 6)]
    assert names(data.target_train) == [trained % number for number in range(2, 6)]
    assert names(data.target_val) == [evaluated]
    assert "Published: test cases of SIFA: CT 1, 9," in (tmp_path / "out" / "dataset.md").read_text()


def test_incomplete_downloads_are_refused(btcv: Path, chaos: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"Training: found 5 labelled CT\(s\); wanted 30 \(--partial"):
        made("abdomen_ct2mr", {"source": btcv, "target": chaos}, tmp_path / "out")
    with pytest.raises(InputError, match=r"MR: found 5 MR patient\(s\); wanted 20"):
        made("abdomen_mr2ct", {"source": chaos, "target": btcv}, tmp_path / "out")
    next((chaos / "Train_Sets" / "MR" / "2" / "T2SPIR" / "Ground").iterdir()).unlink()
    with pytest.raises(InputError, match=r"2/T2SPIR: found 5 DICOM slice\(s\) and 4 ground truth picture"):
        made("abdomen_mr2ct", {"source": chaos, "target": btcv}, tmp_path / "out", partial=True)
    with pytest.raises(InputError, match="wanted CHAOS with MR"):
        made("abdomen_mr2ct", {"source": btcv, "target": chaos}, tmp_path / "out", partial=True)


@pytest.mark.parametrize(("table", "values"), [(CHAOS_TABLE, [1, 27, 54, 71, 150, 239]), (BTCV_TABLE, [14, -1, 255])])
def test_other_values_are_refused(table: LabelTable, values: list[int]):
    for value in values:
        with pytest.raises(InputError, match="wanted only"):
            table.remap(np.array([value]), "file")


def test_an_unknown_grey_value_names_the_ground_truth(btcv: Path, chaos: Path, tmp_path: Path):
    path = next((chaos / "Train_Sets" / "MR" / "3" / "T2SPIR" / "Ground").iterdir())
    Image.fromarray(np.full((ROWS, COLUMNS), 150, np.uint8)).save(path)
    with pytest.raises(InputError, match=r"3/T2SPIR/Ground: found the label value\(s\) \[150\.0\] in 42 voxel"):
        made("abdomen_mr2ct", {"source": chaos, "target": btcv}, tmp_path / "out", partial=True)


def test_a_series_agrees_with_simpleitk(tmp_path: Path):
    """The geometry of an oblique series written by SimpleITK comes back."""
    image = sitk.GetImageFromArray(noise((SLICES, ROWS, COLUMNS)))
    image.SetSpacing(SPACING)
    image.SetOrigin((-3.0, 11.0, 5.0))
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.2, -0.1, 0.3).GetMatrix()
    image.SetDirection(turn)
    # Even names on purpose out of order.
    for index in range(SLICES):
        piece = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        pixels = sitk.GetArrayFromImage(piece)
        path = tmp_path / f"{(index * 3) % SLICES}.dcm"
        slice_file(path, pixels, 0.0)
        header = pydicom.dcmread(path)
        header.ImagePositionPatient = list(position)
        header.ImageOrientationPatient = [turn[0], turn[3], turn[6], turn[1], turn[4], turn[7]]
        header.save_as(path)
    volume = read_dicom(sorted(tmp_path.iterdir()))
    np.testing.assert_array_equal(volume.array, 2 * sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(int) - 7)
    for index in ((0, 0, 0), (COLUMNS - 1, 0, SLICES - 1), (2, ROWS - 1, 1)):
        world = (volume.affine @ [*index, 1])[:3] * (-1, -1, 1)
        np.testing.assert_allclose(world, image.TransformIndexToPhysicalPoint(index), atol=1e-3)


def test_uneven_series_are_refused(tmp_path: Path):
    pixels = noise((ROWS, COLUMNS))
    for index, position in enumerate((0.0, 5.0, 15.0)):
        slice_file(tmp_path / f"{index}.dcm", pixels, position)
    files = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=r"found 5 mm between .*0\.dcm and .*1\.dcm where others are 7\.5 mm apart"):
        order_slices(files)
    with pytest.raises(InputError, match=r"found 1 slice\(s\); wanted a series of 2 or more"):
        order_slices(files[:1])
    slice_file(files[2], pixels, 10.0, tilt=0.1)
    with pytest.raises(InputError, match="another direction"):
        order_slices(files)
    files[2].write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"2\.dcm: cannot be read as DICOM"):
        order_slices(files)


def test_pairing_slices_and_pictures():
    folder = Path("x")
    slices = [folder / f"IMG-0002-{number:05d}.dcm" for number in (2, 1, 10)]
    same = [path.with_suffix(".png") for path in slices]
    assert {one.stem: other.stem for one, other in pair_slices(slices, same[::-1], folder).items()} == {
        path.stem: path.stem for path in slices
    }
    ranked = pair_slices(slices, [folder / f"liver_GT_{number:03d}.png" for number in range(3)], folder)
    assert [(one.stem[-2:], other.stem[-1]) for one, other in ranked.items()] == [("01", "0"), ("02", "1"), ("10", "2")]
    with pytest.raises(InputError, match="found no ground truth of that name"):
        pair_slices(slices, [*same[:2], folder / "IMG-0002-00011.png"], folder)
