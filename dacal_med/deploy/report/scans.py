# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Voxels of a case for the report: segmentation, confidence, and where they are at hand image and label."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from dacal_med.data.datalist import FILE_NAME, load_datalist
from dacal_med.deploy.report.predictions import Prediction
from dacal_med.io.discovery import Source, discover
from dacal_med.io.errors import InputError
from dacal_med.io.files import given_path
from dacal_med.io.image import Header, check_place, on_grid_of
from dacal_med.io.reading import image_stem, is_image_file, read_image
from dacal_med.transforms.labels import IGNORE_INDEX

Array = npt.NDArray[np.float32]
_NUMBERED = re.compile(r"case_\d+")


@dataclass(frozen=True)
class Scan:
    """One case in display orientation: first axis to the right, second upwards, third the one that is sliced.

    Attributes:
        segmentation: classes.
        confidence: largest probabilities.
        image: intensities of the first channel (of pictures the mean of all); None if not at hand.
        label: true classes, 255 where unknown; None if not at hand.
        spacing: voxel size along each axis; ones for pictures.
    """

    segmentation: npt.NDArray[np.uint8]
    confidence: Array
    image: Array | None
    label: npt.NDArray[np.uint8] | None
    spacing: tuple[float, ...]


class Images:
    """The images that were segmented.

    Args:
        place: the folder or file that the inference was given; None if there is none.
        predictions: names of cases, and what their images are.

    Raises:
        InputError: if no case of the predictions is there.
    """

    def __init__(self, place: str | Path | None, predictions: Sequence[Prediction]) -> None:
        self.sources: dict[str, Source] = {}
        ok = [prediction for prediction in predictions if prediction.ok]
        if place is None or not ok:
            return
        dims = len(ok[0].content["input"]["shape"])
        # Cases are numbered in the order of the folder, or named after their files.
        for identify in (True, False):
            self.sources.update({source.name: source for source in discover(place, dims, identify, ok[0].folder)})
        if not any(prediction.name in self.sources for prediction in ok):
            raise InputError(f"--images: found none of the cases in {place}, wanted the folder that was segmented")

    def read(self, name: str) -> Array | None:
        """Return the image ``(channels, *spatial)`` of a case; None if it is not there."""
        source = self.sources.get(name)
        return None if source is None else np.asarray(source.open().voxels(), dtype=np.float32)

    def file(self, name: str) -> Path | None:
        """Return the file of a case, of a DICOM series the folder of its first file; None if it is not there."""
        source = self.sources.get(name)
        if source is None:
            return None
        return source.files[0].parent if source.dicom else source.files[0]


class Labels:
    """The labels of some cases.

    Args:
        place: a ``datalist.json`` or the folder of one, whose entries name the label of each image; or a folder of
            label files named like the cases or like the images, whose values are the numbers of the classes.
        images: tells which image a case is.

    Raises:
        InputError: if there is no such place, or nothing in it.
    """

    def __init__(self, place: str | Path, images: Images) -> None:
        place = given_path(place, "--labels")
        self.images = images
        self.values: tuple[int, ...] | None = None
        self.ignored: tuple[int, ...] = (IGNORE_INDEX,)
        self.by_image: dict[Path, Path] = {}
        self.by_stem: dict[str, Path] = {}
        if place.is_dir() and (place / FILE_NAME).is_file():
            place = place / FILE_NAME
        if place.suffix == ".json":
            self._read_datalist(place)
        elif place.is_dir():
            self.by_stem = {image_stem(path): path for path in sorted(place.iterdir()) if is_image_file(path)}
        if not self.by_image and not self.by_stem:
            raise InputError(f"--labels: found no label at {place}, wanted a folder of label files or a {FILE_NAME}")

    def _read_datalist(self, path: Path) -> None:
        if path.name != FILE_NAME:
            entries = _entries(path)
        else:
            datalist = load_datalist(path.parent)
            self.values, self.ignored = datalist.label_values, datalist.ignore_values
            entries = [*datalist.target_val, *datalist.source]
        self.by_image = {Path(entry["image"]).resolve(): Path(entry["label"]) for entry in entries if "label" in entry}

    def file(self, name: str) -> Path | None:
        """Return the label of a case; None if there is none."""
        image = self.images.file(name)
        if image is not None and image.resolve() in self.by_image:
            return self.by_image[image.resolve()]
        stems = [name, *([image_stem(image)] if image is not None else [])]
        return next((self.by_stem[s] for stem in stems for s in (stem, f"{stem}_label") if s in self.by_stem), None)

    def read(self, name: str, header: Header) -> npt.NDArray[np.uint8] | None:
        """Return the classes ``(*spatial)`` of a case, 255 where unknown; None if it has no label.

        Args:
            name: of the case.
            header: of its segmentation, in the order of whose axes the classes are.

        Raises:
            InputError: the file cannot be read, does not lie on the image, or holds a value that is no class.
        """
        path = self.file(name)
        if path is None:
            return None
        label = read_image(path, as_label=True)
        check_place(header, f"the image of {name}", label.header, f"label of {name}")
        array = on_grid_of(header, label)[0]
        result = np.full(array.shape, IGNORE_INDEX, np.uint8)
        values = self.values if self.values is not None else tuple(range(IGNORE_INDEX))
        known = np.isin(array, self.ignored)
        for k, value in enumerate(values):
            mask = array == value
            result[mask] = k
            known |= mask
        if not known.all():
            strange = [float(value) for value in np.unique(array[~known])[:8]]
            raise InputError(f"label of {name}: found the value(s) {strange}, wanted classes")
        return result


def read_scan(prediction: Prediction, images: Images, labels: Labels | None) -> Scan:
    """Read the voxels of a case.

    Raises:
        InputError: a file is missing, unreadable or of another size than the segmentation.
    """
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    header: Header | None = None
    for kind in ("segmentation", "confidence"):
        path = prediction.file(kind)
        if path is None or not os.path.isfile(path):  # a JSON may name a file that no folder can hold
            raise InputError(f"{prediction.shown}: found no file of its {kind} beside its JSON")
        found = read_image(path)
        arrays[kind], header = found.array[0], found.header
    assert header is not None
    affine = header.affine
    if affine is None:
        arrays["confidence"] = arrays["confidence"].astype(np.float32) / 255
    image = images.read(prediction.name)
    if image is not None:
        arrays["image"] = image.mean(axis=0) if affine is None else image[0]
    label = None if labels is None else labels.read(prediction.name, header)
    if label is not None:
        arrays["label"] = label
    shape = arrays["segmentation"].shape
    for kind, array in arrays.items():
        if array.shape != shape:
            raise InputError(f"{prediction.shown}, {kind}: found size {array.shape}, wanted {shape}: another image?")
    shown, spacing = _displayed(arrays, affine)
    return Scan(
        shown["segmentation"].astype(np.uint8),
        shown["confidence"].astype(np.float32),
        shown["image"].astype(np.float32) if "image" in shown else None,
        shown["label"].astype(np.uint8) if "label" in shown else None,
        spacing,
    )


def _displayed(
    arrays: Mapping[str, npt.NDArray[np.generic]], affine: npt.NDArray[np.float64] | None
) -> tuple[dict[str, npt.NDArray[np.generic]], tuple[float, ...]]:
    """Turn arrays so that the patient is upright, with the coarsest axis last: the plane that was acquired."""
    dims = next(iter(arrays.values())).ndim
    if affine is None:
        # Rows of a picture go down, an axis of a figure goes up.
        return {kind: array[:, ::-1] for kind, array in arrays.items()}, (1.0,) * dims
    if dims == 2:
        return dict(arrays), tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0)[:2])
    orientation = nib.orientations.io_orientation(affine)
    turned = {kind: nib.orientations.apply_orientation(array, orientation) for kind, array in arrays.items()}
    sizes = np.ones(3)
    sizes[orientation[:, 0].astype(int)] = np.linalg.norm(affine[:3, :3], axis=0)
    sliced = int(np.argmax(sizes)) if sizes.max() > 1.2 * sizes[2] else 2
    order = [axis for axis in range(3) if axis != sliced] + [sliced]
    return {kind: np.transpose(array, order) for kind, array in turned.items()}, tuple(float(sizes[k]) for k in order)


def _entries(path: Path) -> list[dict[str, str]]:
    """Read a plain list of ``{"image", "label"}`` with paths relative to the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--labels: {path} cannot be read ({error})") from error
    if not isinstance(content, list) or not all(
        isinstance(e, dict) and {"image", "label"} <= e.keys() for e in content
    ):
        raise InputError(f'--labels: {path} is not a {FILE_NAME} nor a list of {{"image": path, "label": path}}')
    return [{key: str(path.parent / entry[key]) for key in ("image", "label")} for entry in content]
