# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Odd but real files, written from arrays: what a reader must give for each, or that it must refuse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import pydicom
import SimpleITK as sitk
import tifffile
from PIL import Image
from pydicom.uid import generate_uid

from tests.deploy.runtime.builders import LPS, ball, change, oblique, write_enhanced, write_series

SHAPE = (9, 8, 6)
ARRAY = ball(SHAPE)
SIZES = np.array([0.8, 0.9, 2.5])
AXIAL = np.array([[-0.8, 0, 0, 40.0], [0, -0.9, 0, 35.0], [0, 0, 2.5, -80.0], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, 3.0, -20.0], [-1.1, 0, 0, 30.0], [0, -0.7, 0, 50.0], [0, 0, 0, 1]])
COLORS = np.random.default_rng(3).integers(0, 256, (6, 7, 3)).astype(np.uint8)  # rows, columns
GRAYS = np.random.default_rng(4).integers(0, 256, (6, 7)).astype(np.uint8)


@dataclass(frozen=True)
class Odd:
    """A file, or a folder of one series, and the image that it is.

    Attributes:
        place: what a data set names.
        array: ``(channels, *spatial)``, pictures as ``(channels, width, height)``.
        affine: voxel index to RAS millimeters; None for pictures.
        modality: that its header tells.
        note: words of what a user is told about it.
    """

    place: Path
    array: np.ndarray
    affine: np.ndarray | None
    modality: str | None = None
    note: str = ""


def series(edit: Callable[[list[Path]], None] | None = None, affine: np.ndarray = AXIAL, **options: Any) -> Any:
    def write(folder: Path) -> Odd:
        files = write_series(folder / "s", ARRAY, affine, **options)
        if edit is not None:
            edit(files)
        return Odd(folder / "s", ARRAY[None], affine, options.get("modality", "MR"))

    return write


def numbered(numbers: list[int | None]) -> Callable[[list[Path]], None]:
    def edit(files: list[Path]) -> None:
        for file, number in zip(files, numbers, strict=True):
            change(file, InstanceNumber=number)

    return edit


def bare(files: list[Path]) -> None:
    """Objects without preamble, meta information and suffix."""
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.preamble = None
        pydicom.dcmwrite(file.with_suffix(""), dataset, enforce_file_format=False, implicit_vr=True, little_endian=True)
        file.unlink()


def copied(files: list[Path]) -> None:
    (files[0].parent / "again").mkdir()
    (files[0].parent / "again" / "copy.dcm").write_bytes(files[2].read_bytes())


def tilted() -> np.ndarray:
    affine = AXIAL.copy()
    affine[1, 2] = 2.5 * np.tan(np.radians(18))
    return affine


def sloped(folder: Path) -> Odd:
    files = write_series(folder / "s", ARRAY, AXIAL, "MR")
    slopes = np.linspace(0.25, 1.5, len(files))
    for file, slope in zip(files, slopes, strict=True):
        change(file, RescaleSlope=f"{slope:.6g}", Modality="PT")
    return Odd(folder / "s", (ARRAY * [float(f"{slope:.6g}") for slope in slopes])[None], AXIAL, "PT")


def padded(folder: Path) -> Odd:
    """Stored values of -2000 outside of a disk, in whole numbers, signed."""
    inside = np.hypot(*np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")) < 1
    stored = np.where(inside[..., None], ARRAY, -2000).astype(np.int16)
    for file in write_series(folder / "s", stored, AXIAL):
        dataset = pydicom.dcmread(file)
        dataset.add_new("PixelPaddingValue", "SS", -2000)
        dataset.save_as(file)
    wanted = np.where(inside[..., None], ARRAY, ARRAY[inside].min())
    return Odd(folder / "s", wanted[None], AXIAL, "MR", "without a measurement")


def padded_above(folder: Path) -> Odd:
    """A padding value that the 12 stored bits cannot hold."""
    inside = np.zeros(SHAPE, bool)
    inside[2:7, 2:6] = True
    stored = np.where(inside, np.abs(ARRAY), -32768).astype(np.int16)
    for file in write_series(folder / "s", stored, AXIAL):
        dataset = pydicom.dcmread(file)
        dataset.BitsStored, dataset.HighBit = 12, 11
        dataset.add_new("PixelPaddingValue", "SS", -32768)
        dataset.save_as(file)
    wanted = np.where(inside, np.abs(ARRAY), np.abs(ARRAY)[inside].min())
    return Odd(folder / "s", wanted[None], AXIAL, "MR", "without a measurement")


def enhanced(name: str) -> Callable[[Path], Odd]:
    def write(folder: Path) -> Odd:
        (folder / "s").mkdir()
        write_enhanced(folder / "s" / "e.dcm", ARRAY, oblique(), [2, 0, 5, 3, 1, 4])
        return Odd(folder / name, ARRAY[None], oblique(), "CT")

    return write


def nifti(edit: Callable[[Any], None] | None = None, wanted: np.ndarray = AXIAL, note: str = "", **kinds: Any) -> Any:
    def write(folder: Path) -> Odd:
        image = nib.Nifti1Image(kinds.get("array", ARRAY), kinds.get("affine", AXIAL))
        if edit is not None:
            edit(image.header)
        path = folder / kinds.get("name", "a.nii.gz")
        path.write_bytes(b"")
        nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)
        return Odd(path, ARRAY[None], wanted, note=note)

    return write


def no_forms(header: Any) -> None:
    header.set_sform(None, 0)
    header.set_qform(None, 0)
    header["pixdim"][1:4] = SIZES


def qform_alone(header: Any) -> None:
    header.set_sform(None, 0)
    header.set_qform(AXIAL, 1)


def other_qform(header: Any) -> None:
    header.set_sform(AXIAL, 2)
    header.set_qform(np.diag([0.8, 0.9, 2.5, 1.0]), 1)


def broken_qform(header: Any) -> None:
    header.set_sform(AXIAL, 1)
    header["qform_code"] = 1
    header["quatern_b"] = header["quatern_c"] = 1.0


def other_pixdim(header: Any) -> None:
    header.set_sform(AXIAL, 1)
    header.set_qform(None, 0)
    header["pixdim"][1:4] = [1, 1, 1]


def in_units(unit: str, factor: float) -> Any:
    def edit(header: Any) -> None:
        scaled = np.diag([factor, factor, factor, 1.0]) @ AXIAL
        header.set_sform(scaled, 1)
        header.set_qform(scaled, 1)
        header.set_xyzt_units(unit)

    return nifti(edit, note=f"its lengths are in {unit}s")


def scaled_integers(folder: Path) -> Odd:
    path = folder / "a.nii"
    nib.save(nib.Nifti1Image(ARRAY, AXIAL), path)
    content = bytearray(path.read_bytes())
    content[112:120] = np.array([0.5, 3], "<f4").tobytes()  # scl_slope, scl_inter
    path.write_bytes(content)
    return Odd(path, (ARRAY * 0.5 + 3)[None], AXIAL)


def big_endian(folder: Path) -> Odd:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(">i2")
    nib.save(nib.Nifti1Image(ARRAY.astype(">i2"), AXIAL, header), folder / "a.nii")
    return Odd(folder / "a.nii", ARRAY[None], AXIAL)


GUESS = "left and right are a guess"
# What nibabel documents of files without forms: the middle is the origin, the first axis goes to the left.
CENTERED = np.diag([-0.8, 0.9, 2.5, 1.0])
CENTERED[:3, 3] = (np.array(SHAPE) - 1) / 2 * (0.8, -0.9, -2.5)


def in_nrrd(space: str | None, turn: np.ndarray, name: str = "a.nrrd", **header: Any) -> Callable[[Path], Odd]:
    def write(folder: Path) -> Odd:
        own = turn @ oblique()
        scale = header.pop("scale", 1.0) if "scale" in header else 1.0
        fields = {"space directions": own[:3, :3].T * scale, "space origin": own[:3, 3] * scale, **header}
        nrrd.write(str(folder / name), ARRAY, {"space": space, **fields} if space else fields)
        return Odd(folder / name, ARRAY[None], oblique())

    return write


def nrrd_without_space(folder: Path) -> Odd:
    nrrd.write(str(folder / "a.nrrd"), ARRAY, {"spacings": list(SIZES)})
    return Odd(folder / "a.nrrd", ARRAY[None], np.diag([-0.8, -0.9, 2.5, 1.0]), note=GUESS)


def meta_image(name: str) -> Callable[[Path], Odd]:
    def write(folder: Path) -> Odd:
        image, own = sitk.GetImageFromArray(ARRAY.transpose(2, 1, 0)), LPS @ oblique()
        sizes = np.linalg.norm(own[:3, :3], axis=0)
        image.SetSpacing(sizes.tolist())
        image.SetDirection((own[:3, :3] / sizes).ravel().tolist())
        image.SetOrigin(own[:3, 3].tolist())
        sitk.WriteImage(image, str(folder / name))
        return Odd(folder / name, ARRAY[None], oblique())

    return write


def shown(rows: np.ndarray) -> np.ndarray:
    """A picture ``(rows, columns)`` or ``(rows, columns, 3)`` as ``(channels, width, height)``."""
    return np.atleast_3d(rows).transpose(2, 1, 0)


def picture(name: str, rows: np.ndarray, make: Callable[[Path], None]) -> Callable[[Path], Odd]:
    def write(folder: Path) -> Odd:
        make(folder / name)
        return Odd(folder / name, shown(rows), None)

    return write


def gray_palette(path: Path) -> None:
    """Indices in an order of their own, as tools that shrink pictures leave them."""
    order = np.random.default_rng(5).permutation(256)
    image = Image.fromarray(order.argsort()[GRAYS].astype(np.uint8), "P")
    image.putpalette(np.repeat(order.astype(np.uint8)[:, None], 3, axis=1).tobytes())
    image.save(path)


def turned(number: int, back: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Odd]:
    """Stored turned, with the tag that says how to turn it back, in a format without loss."""

    def write(folder: Path) -> Odd:
        exif = Image.Exif()
        exif[0x0112] = number
        Image.fromarray(COLORS).save(folder / "a.png", exif=exif)
        return Odd(folder / "a.png", shown(back(COLORS)), None)

    return write


def camera_jpeg(folder: Path) -> Odd:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLORS).save(folder / "a.jpg", exif=exif, quality=95)
    stored = Image.open(folder / "a.jpg")
    return Odd(folder / "a.jpg", shown(np.rot90(np.asarray(stored), -1)), None)


def tiff(rows: np.ndarray, stored: np.ndarray | None = None, **options: Any) -> Callable[[Path], Odd]:
    return picture("a.tif", rows, lambda path: tifffile.imwrite(path, rows if stored is None else stored, **options))


def bits(path: Path) -> None:
    Image.fromarray(GRAYS > 127).save(path)


WIDE = GRAYS.astype(np.uint16) * 200
VOLUMES: dict[str, Callable[[Path], Odd]] = {
    "DICOM series": series(),
    "DICOM, names against positions": series(reverse=True, modality="CT"),
    "DICOM, sagittal": series(affine=SAGITTAL),
    "DICOM, interleaved instance numbers": series(numbered([1, 4, 2, 5, 3, 6])),
    "DICOM, one instance number": series(numbered([1] * 6)),
    "DICOM, no instance number": series(numbered([None] * 6)),
    "DICOM, no preamble nor suffix": series(bare),
    "DICOM, a copy of an instance": series(copied),
    "DICOM, a series UID a slice": series(lambda files: [change(f, SeriesInstanceUID=generate_uid()) for f in files]),
    "DICOM, empty slope and intercept": series(
        lambda files: [change(file, RescaleSlope="", RescaleIntercept="") for file in files]
    ),
    "DICOM, gantry tilt": series(affine=tilted(), modality="CT"),
    "DICOM, a slope a slice": sloped,
    "DICOM, pixel padding": padded,
    "DICOM, pixel padding above the stored bits": padded_above,
    "DICOM, enhanced multi-frame folder": enhanced("s"),
    "DICOM, enhanced multi-frame file": enhanced("s/e.dcm"),
    "NIfTI": nifti(),
    "NIfTI, oblique": nifti(affine=oblique(), wanted=oblique()),
    "NIfTI, scaled integers": scaled_integers,
    "NIfTI, big endian": big_endian,
    "NIfTI, no forms": nifti(no_forms, CENTERED, GUESS),
    "NIfTI, qform alone": nifti(qform_alone),
    "NIfTI, qform unlike sform": nifti(other_qform, note="sform and qform lie up to"),
    "NIfTI, qform that is no rotation": nifti(broken_qform, note="its qform is no rotation"),
    "NIfTI, pixdim unlike sform": nifti(other_pixdim, note="its pixdim says 1 x 1 x 1"),
    "NIfTI in meters": in_units("meter", 1e-3),
    "NIfTI in micrometers": in_units("micron", 1e3),
    "NRRD, LPS": in_nrrd("left-posterior-superior", LPS),
    "NRRD, RAS": in_nrrd("right-anterior-superior", np.eye(4)),
    "NRRD, LAS": in_nrrd("LAS", np.diag([-1.0, 1, 1, 1])),
    "NRRD, ASR": in_nrrd("anterior-superior-right", np.eye(4)[[1, 2, 0, 3]]),
    "NRRD, detached": in_nrrd("left-posterior-superior", LPS, "a.nhdr"),
    "NRRD, no space": nrrd_without_space,
    "MHA": meta_image("a.mha"),
    "MHD": meta_image("a.mhd"),
}
PICTURES: dict[str, Callable[[Path], Odd]] = {
    "PNG": picture("a.png", COLORS, lambda path: Image.fromarray(COLORS).save(path)),
    "PNG, gray": picture("a.png", GRAYS, lambda path: Image.fromarray(GRAYS).save(path)),
    "PNG, 16 bits": picture("a.png", WIDE, lambda path: Image.fromarray(WIDE).save(path)),
    "PNG, 1 bit": picture("a.png", np.where(GRAYS > 127, 255, 0), bits),
    "PNG, palette of grays": picture("a.png", GRAYS, gray_palette),
    "PNG, palette of colors": picture(
        "a.png", COLORS, lambda path: Image.fromarray(COLORS).quantize(256, dither=Image.Dither.NONE).save(path)
    ),
    "PNG, opaque": picture("a.png", COLORS, lambda path: Image.fromarray(COLORS).convert("RGBA").save(path)),
    "PNG, upside down": turned(3, lambda rows: rows[::-1, ::-1]),
    "PNG, on its side": turned(6, lambda rows: np.rot90(rows, -1)),
    "PNG, on its other side": turned(8, lambda rows: np.rot90(rows, 1)),
    "PNG, mirrored": turned(2, lambda rows: rows[:, ::-1]),
    "JPEG of a camera": camera_jpeg,
    "TIFF, 16 bits": tiff(WIDE),
    "TIFF, 16 bits, big endian": tiff(WIDE, byteorder=">"),
    "TIFF of ImageJ": tiff(WIDE, imagej=True),
    "TIFF, big": tiff(COLORS, bigtiff=True, photometric="rgb"),
    "TIFF, OME": tiff(COLORS, ome=True, photometric="rgb"),
    "TIFF, white is 0": tiff(GRAYS, 255 - GRAYS, photometric="miniswhite"),
    "TIFF, colors of 16 bits": tiff(COLORS, COLORS.astype(np.uint16) * 257, photometric="rgb"),
    "TIFF, planes of colors": tiff(COLORS, np.moveaxis(COLORS, 2, 0), photometric="rgb", planarconfig="separate"),
    "TIFF, on its side": tiff(np.rot90(GRAYS, -1), GRAYS, extratags=[(274, 3, 1, 6, True)]),
    "TIFF, 32 bits": tiff(WIDE.astype(np.uint32)),
    "BMP": picture("a.bmp", COLORS, lambda path: Image.fromarray(COLORS).save(path)),
    "PPM": picture("a.ppm", COLORS, lambda path: Image.fromarray(COLORS).save(path)),
    "GIF": picture("a.gif", GRAYS, lambda path: Image.fromarray(GRAYS).save(path)),
}


def first_of(**values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        change(write_series(folder / "s", ARRAY, AXIAL)[2], **values)
        return folder / "s"

    return write


def every(**values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        for file in write_series(folder / "s", ARRAY, AXIAL):
            change(file, **values)
        return folder / "s"

    return write


def missing_slice(folder: Path) -> Path:
    write_series(folder / "s", ARRAY, AXIAL)[2].unlink()
    return folder / "s"


def changed_copy(folder: Path) -> Path:
    files = write_series(folder / "s", ARRAY, AXIAL)
    (folder / "s" / "other.dcm").write_bytes(files[2].read_bytes())
    change(folder / "s" / "other.dcm", PixelData=bytes(len(pydicom.dcmread(files[2]).PixelData)))
    return folder / "s"


def two_enhanced(folder: Path) -> Path:
    (folder / "s").mkdir()
    for name in ("a.dcm", "b.dcm"):
        write_enhanced(folder / "s" / name, ARRAY, AXIAL, range(SHAPE[2]))
    return folder / "s"


def saved(name: str, save: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        save(folder / name)
        return folder / name

    return write


def lut(folder: Path) -> Path:
    item = pydicom.Dataset()
    item.LUTDescriptor, item.ModalityLUTType, item.LUTData = [2, 0, 16], "HU", bytes(4)
    return every(ModalityLUTSequence=[item])(folder)


def flat_nifti(path: Path) -> None:
    affine = AXIAL.copy()
    affine[:3, 2] = affine[:3, 1]
    header = nib.Nifti1Header()
    header.set_data_shape(SHAPE)
    header.set_sform(affine, 1)
    nib.save(nib.Nifti1Image(ARRAY, None, header), path)


def colored_nifti(path: Path) -> None:
    kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, kind), AXIAL), path)


def transparent(path: Path) -> None:
    Image.fromarray(np.dstack([COLORS, np.full(COLORS.shape[:2], 200, np.uint8)])).save(path)


def see_through_palette(path: Path) -> None:
    Image.fromarray(COLORS).quantize(16).save(path, transparency=3)


LPS_HEADER = {"space directions": np.eye(3), "space origin": np.zeros(3)}
REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "DICOM, MONOCHROME1": (every(PhotometricInterpretation="MONOCHROME1"), "MONOCHROME1; wanted MONOCHROME2"),
    "DICOM, two patients": (first_of(PatientID="another"), "has another patient"),
    "DICOM, two modalities": (first_of(Modality="CT"), "has another modality"),
    "DICOM, a missing slice": (missing_slice, "evenly spaced slices, none missing"),
    "DICOM, two objects in one place": (changed_copy, "lie at the same place"),
    "DICOM, two series": (first_of(SeriesInstanceUID="1.2.3"), "found 2 DICOM series|too many values"),
    "DICOM, shifted bits": (every(BitsStored=12, HighBit=15), "found the highest bit 15 of 12 stored; wanted 11"),
    "DICOM, two enhanced series": (two_enhanced, "found 2 DICOM series|too many values"),
    "DICOM, a Modality LUT": (lut, "found a Modality LUT"),
    "NIfTI, flat": (saved("a.nii", flat_nifti), "axes lie in one plane"),
    "NIfTI, an unknown unit": (
        nifti(lambda header: header.__setitem__("xyzt_units", 4)),
        "found the unit 4 of lengths; wanted",
    ),
    "NIfTI, colors": (saved("a.nii", colored_nifti), "found values of type"),
    "NIfTI, complex": (
        saved("a.nii", lambda path: nib.save(nib.Nifti1Image(ARRAY.astype(np.complex64), AXIAL), path)),
        "found values of type complex64",
    ),
    "NRRD, a scanner's space": (
        saved("a.nrrd", lambda path: nrrd.write(str(path), ARRAY, {"space": "scanner-xyz", **LPS_HEADER})),
        "found space 'scanner-xyz'",
    ),
    "NRRD, unknown units": (
        saved(
            "a.nrrd",
            lambda path: nrrd.write(str(path), ARRAY, {"space": "LPS", "space units": ["furlong"] * 3, **LPS_HEADER}),
        ),
        "found space units",
    ),
    "PNG, transparent": (saved("a.png", transparent), "found transparent pixels"),
    "PNG, a transparent color": (saved("a.png", see_through_palette), "found transparent pixels"),
    "TIFF, a stack": (
        saved("a.tif", lambda path: tifffile.imwrite(path, np.stack([GRAYS] * 3), photometric="minisblack")),
        "a stack of 3",
    ),
    "TIFF, bands": (
        saved("a.tif", lambda path: tifffile.imwrite(path, np.dstack([COLORS] * 2), photometric="rgb")),
        "6 samples a pixel, 3 of them no color",
    ),
    "TIFF, signed bytes": (saved("a.tif", lambda path: tifffile.imwrite(path, GRAYS.view(np.int8))), "signed values"),
    "TIFF, white is 0, 16 bits": (
        saved("a.tif", lambda path: tifffile.imwrite(path, WIDE, photometric="miniswhite")),
        "white as 0",
    ),
}
