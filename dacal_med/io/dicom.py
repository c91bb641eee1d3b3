# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""A DICOM series as a volume: slices in the order of their positions, geometry from positions alone.

Single-frame slices and the frames of an enhanced multi-frame object go through one path. Whatever would give a wrong
geometry is refused: mixed, missing or duplicate slices. A gantry tilt is no error: the affine holds the shear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dacal_med.io.dicom_files import quiet, read_dataset
from dacal_med.io.errors import InputError
from dacal_med.io.image import Array, Header, Opened, usable_affine
from dacal_med.io.nrrd import LPS_TO_RAS

ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
    "1.2.840.10008.5.1.4.1.1.128.1": "Legacy Converted Enhanced PET",
}
_GAP_TOLERANCE = 0.02  # of the slice distance; positions are stored with few digits
_POSITION_TOLERANCE = 0.01  # mm
_DIRECTION_TOLERANCE = 1e-3
_TILT_TOLERANCE = 1e-3  # sine of the angle between the slices' normal and their order


@dataclass(frozen=True)
class Slice:
    """One plane of a series.

    Attributes:
        name: what messages call it.
        file: which file of the series holds it, from 0.
        frame: which frame of that file, from 0.
        shape: rows, columns.
        position: of the centre of the first pixel, LPS, mm.
        directions: of a row and of a column, 6 numbers, LPS.
        spacing: between rows and between columns, mm.
        slope: of the rescaling to the modality's unit.
        intercept: of the rescaling.
        padding: lowest and highest stored value that stand for no measurement; None for none.
        same: what every slice of a series has alike, by what messages call it.
        instance: UID of the object.
    """

    name: str
    file: int
    frame: int
    shape: tuple[int, int]
    position: np.ndarray
    directions: np.ndarray
    spacing: tuple[float, float]
    slope: float
    intercept: float
    padding: tuple[int, int] | None
    same: dict[str, str]
    instance: str


@dataclass(frozen=True)
class Series:
    """What a segmentation of a series refers to.

    Attributes:
        files: of the series; of a multi-frame object its only file.
        slices: in the order of the volume's last axis.
    """

    files: tuple[Path, ...]
    slices: tuple[Slice, ...]

    @property
    def ordered_files(self) -> list[Path]:
        """The files in the order of their slices."""
        return [self.files[index] for index in dict.fromkeys(item.file for item in self.slices)]

    def headers(self) -> list[Dataset]:
        """Header of each file without its pixels: of slices in the volume's order, of a multi-frame object its own."""
        with quiet():
            return [read_dataset(file, str(file), stop_before_pixels=True) for file in self.ordered_files]


def open_series(files: Sequence[Path], name: str, file_name: Callable[[int], str]) -> Opened:
    """Open a DICOM series: 2D slices, or one enhanced multi-frame object.

    Positions decide, neither file names nor instance numbers: anonymization changes both. Identical copies of an
    instance count once. Pixels of PixelPaddingValue, where nothing was measured, become the smallest measured value.

    Args:
        files: of the series, in any order.
        name: what messages call the series.
        file_name: what messages call its n-th file.

    Returns:
        The volume ``(1, columns, rows, slices)``, rescaled, slices along their normal; ``affine`` in RAS.

    Raises:
        InputError: slices that are not parallel, of one size and evenly spaced, of two patients, or pixels that cannot
            be decoded.
    """
    with quiet():
        headers = [read_dataset(file, file_name(k), stop_before_pixels=True) for k, file in enumerate(files)]
        slices = [item for k, header in enumerate(headers) for item in _slices(header, k, file_name(k))]
        ordered = _order(_without_copies(slices, files), name)
        affine, notes = _affine(ordered, name)
        modality = str(headers[0].get("Modality", "")) or None
    first = ordered[0]
    if any(item.padding for item in ordered):
        notes.append("its PixelPaddingValue marks pixels without a measurement: they are background")
    header = Header(
        (first.shape[1], first.shape[0], len(ordered)),
        1,
        usable_affine(affine, name),
        "dicom",
        modality,
        tuple(notes),
        Series(tuple(files), tuple(ordered)),
    )

    def voxels() -> Array:
        with quiet():
            return _pixels(files, ordered, name)

    return Opened(header, voxels)


def _slices(header: Dataset, index: int, name: str) -> list[Slice]:
    """The slices of a file, from its header."""
    stored = int(header.get("BitsStored", 16) or 16)
    if int(header.get("HighBit", stored - 1) or stored - 1) != stored - 1:
        raise InputError(f"{name}: found the highest bit {header.HighBit} of {stored} stored; wanted {stored - 1}")
    if header.get("ModalityLUTSequence"):
        raise InputError(f"{name}: found a Modality LUT; wanted values rescaled by slope and intercept")
    if int(header.get("SamplesPerPixel", 1)) != 1 or header.get("PhotometricInterpretation") != "MONOCHROME2":
        kind = header.get("PhotometricInterpretation", "none")
        raise InputError(f"{name}: found photometric interpretation {kind}; wanted MONOCHROME2")
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if str(header.get("SOPClassUID", "")) in ENHANCED:
        return [_frame(header, index, frame, f"{name}, frame {frame + 1}") for frame in range(frames)]
    if frames > 1:
        kind = UID(str(header.get("SOPClassUID", ""))).name
        raise InputError(
            f"{name}: found {frames} frames of class {kind}, whose frames carry no position; wanted single-frame "
            f"slices or one of {', '.join(ENHANCED.values())}"
        )
    return [_single(header, index, name)]


def _single(header: Dataset, index: int, name: str) -> Slice:
    return _slice(header, header, header, header, header, index, 0, name)


def _frame(header: Dataset, index: int, frame: int, name: str) -> Slice:
    """A frame of an enhanced object, whose geometry lies in functional groups, its own or shared ones."""
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    own = header.get("PerFrameFunctionalGroupsSequence") or []
    if frame >= len(own):
        raise InputError(f"{name}: found no functional group of it; wanted one for each frame")

    def group(keyword: str) -> Dataset:
        items = own[frame].get(keyword) or shared[0].get(keyword)
        return items[0] if items else Dataset()

    return _slice(
        header,
        group("PlanePositionSequence"),
        group("PlaneOrientationSequence"),
        group("PixelMeasuresSequence"),
        group("PixelValueTransformationSequence"),
        index,
        frame,
        name,
    )


def _slice(
    header: Dataset,
    position: Dataset,
    orientation: Dataset,
    measures: Dataset,
    rescaling: Dataset,
    index: int,
    frame: int,
    name: str,
) -> Slice:
    try:
        spacing = [float(value) for value in measures.PixelSpacing]
        found = Slice(
            name,
            index,
            frame,
            (int(header.Rows), int(header.Columns)),
            np.asarray(position.ImagePositionPatient, dtype=np.float64),
            np.asarray(orientation.ImageOrientationPatient, dtype=np.float64),
            (spacing[0], spacing[1]),
            float(rescaling.get("RescaleSlope", 1) or 1),
            float(rescaling.get("RescaleIntercept", 0) or 0),
            _padding(header),
            {
                "patient": str(header.get("PatientID", "") or header.get("PatientName", "")),
                "frame of reference": str(header.get("FrameOfReferenceUID", "")),
                "modality": str(header.get("Modality", "")),
            },
            str(header.get("SOPInstanceUID", "")),
        )
    except (AttributeError, TypeError, ValueError, IndexError) as error:
        missing = getattr(error, "name", None) or "a readable geometry"
        raise InputError(
            f"{name}: found no {missing}; wanted Rows, Columns, PixelSpacing, ImagePositionPatient and "
            "ImageOrientationPatient"
        ) from error
    numbers = [*found.position, *found.directions, *found.spacing, found.slope, found.intercept]
    rows, columns = found.directions[:3], found.directions[3:]
    if not np.isfinite(numbers).all() or found.position.shape != (3,) or found.directions.shape != (6,):
        raise InputError(f"{name}: found a position, direction or spacing that is no number; wanted finite ones")
    gram = np.array([rows @ rows - 1, columns @ columns - 1, rows @ columns])
    if np.abs(gram).max() > _DIRECTION_TOLERANCE or min(found.shape) < 1 or min(found.spacing) <= 0:
        raise InputError(f"{name}: found directions, sizes or spacings that are not those of a plane")
    return found


def _padding(header: Dataset) -> tuple[int, int] | None:
    """The stored values that stand for no measurement, signed or not as the pixels are, whatever the header's type."""
    value = header.get("PixelPaddingValue")
    if value is None or value == "":
        return None
    limit = header.get("PixelPaddingRangeLimit")
    span = 1 << int(header.BitsAllocated)
    signed = int(header.get("PixelRepresentation", 0)) == 1
    low, high = sorted(
        (int(v) + span // 2) % span - span // 2 if signed else int(v) % span
        for v in (value, value if limit is None or limit == "" else limit)
    )
    return low, high


def _without_copies(slices: Sequence[Slice], files: Sequence[Path]) -> list[Slice]:
    """Slices of which identical copies of an object are left out; what differs stays, to be told."""
    kept: dict[tuple[str, int], Slice] = {}
    rest = []
    for item in slices:
        first = kept.setdefault((item.instance or f"file {item.file}", item.frame), item)
        if first is not item and not _same_object(files[first.file], files[item.file]):
            rest.append(item)
    return [*kept.values(), *rest]


def _same_object(one: Path, other: Path) -> bool:
    datasets = [read_dataset(path, "a copy") for path in (one, other)]
    places = [(d.get("ImagePositionPatient"), d.get("ImageOrientationPatient"), d.get("PixelData")) for d in datasets]
    return bool(places[0] == places[1])


def _order(slices: Sequence[Slice], name: str) -> list[Slice]:
    """Slices along their normal; refuses what is not one even stack."""
    if len(slices) < 2:
        raise InputError(f"{name}: found {len(slices)} slice(s); wanted a series of 2 or more")
    first = slices[0]
    for item in slices[1:]:
        for what, same in (
            ("size", item.shape == first.shape),
            ("direction", np.allclose(item.directions, first.directions, atol=_DIRECTION_TOLERANCE)),
            ("pixel spacing", np.allclose(item.spacing, first.spacing, rtol=_DIRECTION_TOLERANCE)),
            *((what, value == first.same[what]) for what, value in item.same.items()),
        ):
            if not same:
                raise InputError(f"{item.name}: has another {what} than {first.name}; wanted one series, not a mixture")
    normal = np.cross(first.directions[:3], first.directions[3:])
    ordered = sorted(slices, key=lambda item: (float(normal @ item.position), item.file, item.frame))
    gaps = np.diff([float(normal @ item.position) for item in ordered])
    usual = float(np.median(gaps))
    pairs = list(zip(ordered, ordered[1:], gaps, strict=False))
    # Duplicates first: one that was moved leaves a gap as well, and says less there.
    for low, high, gap in pairs:
        if gap <= _POSITION_TOLERANCE:
            raise InputError(f"{low.name} and {high.name} lie at the same place; wanted each slice once")
    for low, high, gap in pairs:
        if abs(gap - usual) > max(_GAP_TOLERANCE * usual, _POSITION_TOLERANCE):
            raise InputError(
                f"{name}: found {gap:.4g} mm between {low.name} and {high.name} where others are {usual:.4g} mm apart; "
                "wanted evenly spaced slices, none missing"
            )
    return ordered


def _affine(ordered: Sequence[Slice], name: str) -> tuple[np.ndarray, list[str]]:
    """Voxel index (column, row, slice) to RAS, and what is unusual about it."""
    first, last = ordered[0], ordered[-1]
    step = (last.position - first.position) / (len(ordered) - 1)
    size = float(np.linalg.norm(step))
    for index, item in enumerate(ordered):
        off = float(np.linalg.norm(item.position - first.position - index * step))
        if off > max(_GAP_TOLERANCE * size, 2 * _POSITION_TOLERANCE):
            raise InputError(f"{item.name}: lies {off:.3g} mm off the line of the others; wanted slices on one line")
    affine = np.eye(4)
    affine[:3, 0] = first.directions[:3] * first.spacing[1]
    affine[:3, 1] = first.directions[3:] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    normal = np.cross(first.directions[:3], first.directions[3:])
    sine = float(np.linalg.norm(np.cross(normal, step))) / size
    notes = []
    if sine > _TILT_TOLERANCE:
        angle = float(np.degrees(np.arcsin(min(1.0, sine))))
        notes.append(
            f"the slices are tilted by {angle:.1f} degrees (gantry tilt): resampled to an orthogonal grid inside"
        )
    return LPS_TO_RAS @ affine, notes


def _pixels(files: Sequence[Path], ordered: Sequence[Slice], name: str) -> Array:
    """Rescaled values ``(1, columns, rows, slices)``, int16 where they fit."""
    whole = all(item.slope == 1 and item.intercept == round(item.intercept) for item in ordered)
    rows, columns = ordered[0].shape
    try:
        volume = np.empty((len(ordered), rows, columns), np.int16 if whole else np.float32)
        outside = np.zeros(volume.shape, bool) if any(item.padding for item in ordered) else None
    except MemoryError as error:
        size = f"{columns} x {rows} x {len(ordered)}"
        raise InputError(f"{name}: found a size of {size}; wanted one that fits the memory") from error
    places: dict[int, list[int]] = {}
    for place, item in enumerate(ordered):
        places.setdefault(item.file, []).append(place)
    for file, where in places.items():
        dataset = read_dataset(files[file], ordered[where[0]].name)
        frames = _decode(dataset, ordered[where[0]])
        for place in where:
            item = ordered[place]
            values = frames[item.frame]
            if outside is not None and item.padding is not None:
                outside[place] = _padded(dataset, item, values)
            if not whole:
                volume[place] = values * item.slope + item.intercept
                continue
            shifted = values.astype(np.int64) + int(item.intercept)
            if volume.dtype == np.int16 and (shifted.min() < -32768 or shifted.max() > 32767):
                volume = volume.astype(np.float32)
            volume[place] = shifted
    if outside is not None and outside.any() and not outside.all():
        volume[outside] = volume[~outside].min()
    return volume.transpose(2, 1, 0)[None]


def _explicit(dataset: Dataset) -> bool:
    return dataset.original_encoding[0] is False


def _padded(dataset: Dataset, item: Slice, values: Array) -> Array:
    """Where the pixels of a frame stand for no measurement."""
    assert item.padding is not None
    low, high = item.padding
    bits, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    reach = 1 << (stored - int(dataset.get("PixelRepresentation", 0)))
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if -reach <= low <= high < reach or syntax.is_compressed or not syntax.is_little_endian:
        return (values >= low) & (values <= high)
    # A value that the stored bits cannot hold stands in the bits above, which decoding takes away.
    raw = np.frombuffer(dataset.PixelData, f"<u{bits // 8}", values.size, item.frame * values.size * bits // 8)
    signed = raw.astype(np.int64)
    signed[signed >= 1 << (bits - 1)] -= (1 << bits) if low < 0 else 0
    return ((signed >= low) & (signed <= high)).reshape(values.shape)


def _decode(dataset: Dataset, item: Slice) -> np.ndarray:
    """Stored values ``(frames, rows, columns)`` of a file."""
    if "TransferSyntaxUID" not in dataset.file_meta:  # a file without preamble says it by its encoding alone
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian if _explicit(dataset) else ImplicitVRLittleEndian
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    if "PixelData" not in dataset:
        raise InputError(f"{item.name}: found no pixel data; wanted an image")
    try:
        array = np.asarray(dataset.pixel_array)
    except Exception as error:  # pydicom and its plugins raise whatever they meet
        packed = syntax.is_transfer_syntax and syntax.is_compressed
        advice = "; install the decoder that pydicom names for it" if packed else "; wanted a whole file"
        raise InputError(
            f"{item.name}: pixels of transfer syntax {syntax.name} cannot be decoded ({type(error).__name__}){advice}"
        ) from error
    frames = array if array.ndim == 3 else array[None]
    if frames.shape[1:] != item.shape:
        raise InputError(f"{item.name}: found pixels of shape {frames.shape[1:]}; its header says {item.shape}")
    return frames
