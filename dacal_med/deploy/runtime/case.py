# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""One image from reading to written results, with memory that the number of classes and slices does not multiply."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from dacal_med.deploy.runtime import dicom_seg, writing
from dacal_med.deploy.runtime.checks import check_header, check_voxels
from dacal_med.deploy.runtime.geometry import Grid, Preprocessing, resample, resampled, slabs
from dacal_med.deploy.runtime.model import Model
from dacal_med.deploy.runtime.planes import PlaneFile
from dacal_med.deploy.runtime.windows import Windows, predict
from dacal_med.io.discovery import Source, personal
from dacal_med.io.errors import InputError
from dacal_med.io.files import check_writable
from dacal_med.io.image import Header, Opened

_MIB = 2**20
Progress = Callable[[str, float], None]
"""Told what is being done and the share of it that is done."""


@dataclass(frozen=True)
class Task:
    """What is done with every image.

    Attributes:
        model: the network and its description.
        preprocessing: the bundle's.
        windows: the bundle's.
        spatial_dims: of its images.
        in_channels: of its images.
        output_dir: where results go.
        force: run on another modality than the model's.
        dicom_seg: write DICOM SEG for DICOM input.
    """

    model: Model
    preprocessing: Preprocessing
    windows: Windows
    spatial_dims: int
    in_channels: int
    output_dir: Path
    force: bool
    dicom_seg: bool

    def outputs(self, name: str) -> dict[str, Path]:
        """The files of a case, by what they hold."""
        suffix = ".png" if self.spatial_dims == 2 else ".nii.gz"
        return {
            "segmentation": self.output_dir / f"{name}_seg{suffix}",
            "dicom_seg": self.output_dir / f"{name}_seg.dcm",
            "confidence": self.output_dir / f"{name}_confidence{suffix}",
        }

    def run(self, source: Source, scratch: Path, progress: Progress) -> dict[str, Any]:
        """Segment one image.

        Args:
            source: where it lies.
            scratch: folder for temporary files, on the disk of the results.
            progress: told how far it is.

        Returns:
            What goes into the case's JSON, without its name and status.

        Raises:
            InputError: the image cannot be used, or results cannot be written.
        """
        began = time.perf_counter()
        progress("reading", 0.0)
        opened = source.open()
        header, shape = opened.header, opened.header.shape
        name = source.file_name(0) if source.identify and not source.dicom else "the image"
        told = check_header(header, name, self.spatial_dims, self.in_channels, self.model.modality, self.force)
        warnings = [*self.model.warnings, *told]
        about = {
            "format": header.format,
            "shape": list(shape),
            "spacing_mm": None if header.affine is None else [round(size, 6) for size in header.spacing],
            "modality": header.modality,
            **personal(source),
        }
        grid = self.preprocessing.grid(shape, header.affine)
        self._check_space(shape, grid)
        image = self._prepare(opened, name, grid, progress)
        axis = grid.axis_along(len(shape) - 1)
        with predict(
            image,
            self.model.probabilities,
            self.windows,
            axis,
            scratch / "probabilities",
            lambda share: progress("windows", share),
        ) as probabilities:
            labels, trust = self._write(source.name, header, grid, axis, image, probabilities, progress)
        outputs = self.outputs(source.name)
        if labels is not None and header.series is not None:
            progress("DICOM SEG", 0.0)
            model = self.model
            target, codes = outputs["dicom_seg"], model.segment_codes
            structures = {k: name for k, name in enumerate(model.class_names) if k != model.background}
            dicom_seg.write(target, labels, header.series, structures, model.name, model.version, codes)
        elif header.series is not None:
            warnings.append("DICOM SEG was not written: highdicom is not installed, or --dicom_seg false was given")
        return {
            "warnings": [*warnings, *trust["warnings"]],
            "input": about,
            "model": self.model.description(),
            "trust": trust,
            "outputs": {
                "segmentation": outputs["segmentation"].name,
                "dicom_seg": None if labels is None else outputs["dicom_seg"].name,
                "confidence": outputs["confidence"].name,
            },
            "seconds": round(time.perf_counter() - began, 2),
        }

    def _check_space(self, shape: Sequence[int], grid: Grid) -> None:
        """Before minutes are spent: probabilities on the grid, and at worst what does not compress."""
        voxels = float(np.prod(grid.shape, dtype=np.float64))
        needed = voxels * self.model.num_classes * 4 + float(np.prod(shape, dtype=np.float64)) * 6
        check_writable(self.output_dir, 16 + needed / _MIB)

    def _prepare(self, opened: Opened, name: str, grid: Grid, progress: Progress) -> Tensor:
        """The image as the network sees it, ``(channels, *grid)``."""
        moved = self._resampled(opened, name, grid, progress)
        data = self.preprocessing.intensity({"image": MetaTensor(moved, affine=torch.as_tensor(grid.affine))})
        image = data.pop("image")
        plain: Tensor = (image.as_tensor() if isinstance(image, MetaTensor) else image).float().cpu()
        if tuple(plain.shape) != (self.in_channels, *grid.shape):
            raise InputError(
                f"preprocessing: gives shape {tuple(plain.shape)}; wanted {(self.in_channels, *grid.shape)}"
            )
        return plain

    def _resampled(self, opened: Opened, name: str, grid: Grid, progress: Progress) -> Tensor:
        """The image's voxels, which are not needed again, on the grid."""
        array = opened.voxels()
        check_voxels(array, name)
        progress("preprocessing", 0.0)

        def read(box: Sequence[slice]) -> Tensor:
            return torch.from_numpy(np.array(array[(slice(None), *box)], dtype=np.float32))

        return resampled(read, opened.header.shape, self.in_channels, grid.to_image, grid.shape)

    def _write(
        self,
        name: str,
        header: Header,
        grid: Grid,
        axis: int,
        image: Tensor,
        probabilities: PlaneFile,
        progress: Progress,
    ) -> tuple[np.ndarray | None, dict[str, Any]]:
        """Resample back slab by slab; write segmentation and confidence; the labels if DICOM SEG needs them."""

        def read_probabilities(box: Sequence[slice]) -> Tensor:
            planes = probabilities.read(box[axis].start, box[axis].stop).movedim(1, 1 + axis)
            inside = [slice(None) if k == axis else side for k, side in enumerate(box)]
            return planes[(slice(None), *inside)]

        def read_image(box: Sequence[slice]) -> Tensor:
            return image[(slice(None), *box)]

        shape = header.shape
        keep = self.dicom_seg and header.series is not None
        labels = np.empty(shape, np.uint8, order="F") if keep else None
        trust = self.model.trust(header.voxel_volume_mm3, "pixels" if header.affine is None else "ml")
        last, back = len(shape) - 1, grid.from_image
        channels = self.model.num_classes + self.in_channels
        with ExitStack() as stack:
            segmentation, confidence = (stack.enter_context(w) for w in self._writers(name, header))
            for start, stop in slabs(shape, last, channels, back):
                box = [slice(start, stop) if k == last else slice(0, size) for k, size in enumerate(shape)]
                slab = resample(read_probabilities, grid.shape, back, box)
                trust.update(slab, resample(read_image, grid.shape, back, box))
                sure, winner = slab.max(dim=0)
                predicted = winner.to(torch.uint8).numpy()
                segmentation.add(predicted)
                confidence.add(sure.numpy())
                if labels is not None:
                    labels[..., start:stop] = predicted
                progress("writing", stop / shape[last])
        return labels, trust.result()

    def _writers(self, name: str, header: Header) -> tuple[Any, Any]:
        paths = self.outputs(name)
        if header.affine is None:
            return writing.picture(paths["segmentation"], 1), writing.picture(paths["confidence"], 255)
        return (
            writing.nifti(paths["segmentation"], header, np.uint8),
            writing.nifti(paths["confidence"], header, np.float32),
        )
