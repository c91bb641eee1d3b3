# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Exported folders put together by hand, and DICOM series written from arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from monai.bundle import ConfigParser
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

from dacal_med import __version__
from dacal_med.deploy.export.packages import closure
from dacal_med.deploy.export.site_config import site_inference_config
from dacal_med.deploy.export.wheel import own_wheel
from dacal_med.deploy.runtime import checksums
from dacal_med.deploy.runtime.run import SiteInference
from dacal_med.explanations import TRAINING
from tests.conftest import ROOT

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAME, PATIENT = "Doe^Jane", "MRN-4711"


def export_folder(
    folder: Path,
    bundle: str = "dacal_site2site",
    names: Sequence[str] = ("background", "hippocampus"),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    roi_size: Sequence[int] = (16, 16, 16),
    threshold: float | None = 0.5,
    modality: str | None = None,
) -> Path:
    """An exported folder: a threshold on the preprocessed intensity, or a small U-Net with random weights."""
    own = ROOT / "bundles" / bundle
    task = {"num_classes": len(names), "spacing": list(spacing), "roi_size": list(roi_size)}
    config = site_inference_config(own, task)
    metadata = {**json.loads((own / "configs" / "metadata.json").read_text()), "dacal_med_version": __version__}
    form = metadata["network_data_format"]
    form["outputs"]["pred"]["channel_def"] = {str(k): name for k, name in enumerate(names)}
    if modality is not None:
        form["inputs"]["image"]["modality"] = modality
    if threshold is None:
        config["network_def"].update(channels=[4, 8], strides=[2], num_res_units=1)
    else:
        kind = f"torch.nn.Conv{config['spatial_dims']}d"
        classes = "@num_classes"
        config["network_def"] = {
            "_target_": kind,
            "in_channels": "@in_channels",
            "out_channels": classes,
            "kernel_size": 1,
        }
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "inference.json").write_text(json.dumps(config, indent=2))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata, indent=2))
    wheel = own_wheel()
    (folder / "wheels").mkdir()
    (folder / "wheels" / wheel.name).write_bytes(wheel.content)
    torch.manual_seed(3)
    network = ConfigParser(config).get_parsed_content("network_def")
    with torch.no_grad():
        if threshold is None:
            for parameter in network.parameters():
                parameter.mul_(2.0)
        else:
            network.weight.zero_()
            network.bias.zero_()
            network.weight[1] = 20.0 / config["in_channels"]
            network.bias[1] = -20.0 * threshold
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    checksums.write(folder)
    return folder


def inference(folder: Path, dataset_dir: Path | str, output_dir: Path, **options: Any) -> SiteInference:
    """What the folder's configuration builds, in this process and with this tree's code."""
    parser = ConfigParser(json.loads((folder / "configs" / "inference.json").read_text()))
    parser.update({"bundle_root": str(folder), "device": "cpu"})
    parser.update({"dataset_dir": str(dataset_dir), "output_dir": str(output_dir), **options})
    return parser.get_parsed_content("site")


ABSENT = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {} else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""


def without_training(folder: Path) -> Path:
    """A folder that, first on ``PYTHONPATH``, hides what only training installs, if no network wants it either."""
    installed = closure((*own_wheel().needs, "transformers"))
    (folder / "absent").mkdir(exist_ok=True)
    (folder / "absent" / "sitecustomize.py").write_text(ABSENT.replace("{}", repr(set(TRAINING) - installed.keys())))
    return folder / "absent"


def run_command(folder: Path, cwd: Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Run it as a site does: with the folder's wheel, and without what only training installs."""
    (wheel,) = (folder / "wheels").iterdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(without_training(folder.parent)), str(wheel)])}
    config = os.path.relpath(folder / "configs" / "inference.json", cwd)
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config]
    for key, value in options.items():
        line += [f"--{key}", str(value)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def oblique(spacing: Sequence[float] = (1.5, 0.8, 2.5), origin: Sequence[float] = (12.0, -30.5, 7.25)) -> np.ndarray:
    """A rotated RAS affine."""
    a, b = 0.4, -0.3
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn_z @ turn_x @ np.diag(spacing)
    affine[:3, 3] = origin
    return affine


def right_handed(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same image with slices along their normal, as DICOM readers put them."""
    lps = LPS @ affine
    if np.linalg.det(lps[:3, :3]) > 0:
        return array, affine
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = array.shape[2] - 1
    return array[..., ::-1], affine @ flip


def _common(dataset: Dataset, modality: str, study: str, series: str) -> None:
    dataset.PatientName, dataset.PatientID = NAME, PATIENT
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "F"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20260101", "120000", "S1", "A1"
    dataset.ReferringPhysicianName = ""
    dataset.SeriesNumber, dataset.Modality, dataset.Manufacturer = 3, modality, "none"
    dataset.PositionReferenceIndicator = ""
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15


def _file(path: Path, sop_class: str) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    return dataset


def write_series(
    folder: Path,
    array: np.ndarray,
    affine: np.ndarray,
    modality: str = "MR",
    reverse: bool = False,
    intercept: int = 0,
    slope: float = 1.0,
    series: str | None = None,
    study: str | None = None,
) -> list[Path]:
    """Write an int16 volume ``(columns, rows, slices)`` as one file a slice; returns the files, slice by slice.

    ``reverse`` gives names and instance numbers in the opposite order of the positions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    series, study = series or generate_uid(), study or generate_uid()
    frame = generate_uid()
    count = array.shape[2]
    files = []
    for index in range(count):
        number = count - index if reverse else index + 1
        path = folder / f"IM{number:04d}.dcm"
        dataset = _file(path, CTImageStorage if modality == "CT" else MRImageStorage)
        _common(dataset, modality, study, series)
        dataset.FrameOfReferenceUID, dataset.InstanceNumber = frame, number
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.Rows, dataset.Columns = array.shape[1], array.shape[0]
        dataset.PixelSpacing = [f"{sizes[1]:.10g}", f"{sizes[0]:.10g}"]
        dataset.SliceThickness = f"{sizes[2]:.8g}"
        directions = [*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1])]
        dataset.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in directions]
        position = lps @ [0, 0, index, 1]
        dataset.ImagePositionPatient = [f"{value:.10f}"[:16] for value in position[:3]]
        dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        dataset.PixelRepresentation = 1
        dataset.PixelData = np.ascontiguousarray(array[..., index].T.astype("<i2") - np.int16(intercept)).tobytes()
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return files


def write_enhanced(path: Path, array: np.ndarray, affine: np.ndarray, order: Sequence[int]) -> None:
    """Write an int16 volume as one enhanced CT object, its frames in another order than their positions."""
    lps = LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    dataset = _file(path, EnhancedCTImageStorage)
    _common(dataset, "CT", generate_uid(), generate_uid())
    dataset.FrameOfReferenceUID, dataset.InstanceNumber = generate_uid(), 1
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = array.shape[1], array.shape[0], array.shape[2]
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing = [f"{sizes[1]:.10g}", f"{sizes[0]:.10g}"]
    measures.SliceThickness = f"{sizes[2]:.8g}"
    directions = [*(lps[:3, 0] / sizes[0]), *(lps[:3, 1] / sizes[1])]
    orientation.ImageOrientationPatient = [f"{value:.12f}"[:16] for value in directions]
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for number, index in enumerate(order, 1):
        group, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [f"{value:.10f}"[:16] for value in (lps @ [0, 0, index, 1])[:3]]
        content.DimensionIndexValues = [1, number]
        content.StackID, content.InStackPositionNumber = "1", number
        group.PlanePositionSequence, group.FrameContentSequence = [position], [content]
        frames.append(group)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelRepresentation = 1
    stored = array.transpose(2, 1, 0)[list(order)].astype("<i2") + np.int16(1024)
    dataset.PixelData = np.ascontiguousarray(stored).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def change(path: Path, **values: Any) -> None:
    """Change attributes of a DICOM file; None removes one."""
    dataset = pydicom.dcmread(path)
    for key, value in values.items():
        if value is None:
            delattr(dataset, key)
        else:
            setattr(dataset, key, value)
    dataset.save_as(path)


def ball(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """A bright, off-centre ellipsoid in noise, int16."""
    rng = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    centre = (0.2, -0.3, 0.1)[: len(shape)]
    inside = sum((axis - c) ** 2 for axis, c in zip(axes, centre, strict=True)) < 0.25
    return (np.where(inside, 700, 100) + rng.normal(0, 30, shape)).astype(np.int16)
