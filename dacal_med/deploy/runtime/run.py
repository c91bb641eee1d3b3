# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Run an exported model on a folder of images: ``python -m monai.bundle run --config_file configs/inference.json``."""

from __future__ import annotations

import difflib
import inspect
import json
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from monai import bundle
from monai.transforms import Compose
from torch import nn

from dacal_med.command_line import as_typed
from dacal_med.deploy.runtime import dicom_seg
from dacal_med.deploy.runtime.case import Task
from dacal_med.deploy.runtime.checksums import verify
from dacal_med.deploy.runtime.geometry import Preprocessing
from dacal_med.deploy.runtime.model import Model
from dacal_med.deploy.runtime.progress import ProgressLine
from dacal_med.deploy.runtime.windows import Windows
from dacal_med.io.discovery import Source, discover
from dacal_med.io.errors import InputError
from dacal_med.io.files import check_writable, write_json


class SiteInference:
    """Segments every image of a folder; an image that fails does not stop the others.

    Args:
        bundle_root: the exported folder.
        dataset_dir: folder of DICOM series, NIfTI, NRRD or pictures, or one file.
        output_dir: where results go.
        model_file: TorchScript (``.ts``), or weights (``.pt``) of ``network``.
        network: as the configuration defines it.
        preprocessing: as the configuration defines it.
        inferer: as the configuration defines it, with sliding windows.
        spatial_dims: of the images.
        in_channels: of the images.
        device: where to compute.
        force: run on another modality, or by another version of dacal_med, than the model is made for.
        identify: name cases after files and patients, and say where they come from.
        dicom_seg: write DICOM SEG for DICOM input; "auto": where highdicom is installed.
    """

    def __init__(
        self,
        bundle_root: str,
        dataset_dir: str,
        output_dir: str,
        model_file: str,
        network: nn.Module,
        preprocessing: Compose,
        inferer: Any,
        spatial_dims: int,
        in_channels: int,
        device: torch.device | str = "cpu",
        force: bool | str = False,
        identify: bool | str = False,
        dicom_seg: bool | str = "auto",
    ) -> None:
        self.bundle_root = Path(bundle_root)
        self.dataset_dir = dataset_dir
        self.output_dir = Path(str(output_dir))
        self.model_file = Path(str(model_file))
        self.network = network
        self.preprocessing = preprocessing
        self.inferer = inferer
        self.spatial_dims = spatial_dims
        self.in_channels = in_channels
        self.device = torch.device(device)
        self.force = force
        self.identify = identify
        self.dicom_seg = dicom_seg

    def run(self) -> dict[str, Any]:
        """Segment every image.

        Returns:
            What ``summary.json`` holds.

        Raises:
            InputError: nothing can be run at all: a damaged export, no images, an output folder that cannot be written.
        """
        if not self.dataset_dir:
            raise InputError("dataset_dir: not given; wanted --dataset_dir with a folder of images, or one image")
        verify(self.bundle_root)
        identify, force = _switch("identify", self.identify), _switch("force", self.force)
        check_writable(self.output_dir)
        task = Task(
            model=Model.load(self.bundle_root, self.model_file, self.network, self.device, force),
            preprocessing=Preprocessing.of(self.preprocessing),
            windows=Windows.of(self.inferer),
            spatial_dims=self.spatial_dims,
            in_channels=self.in_channels,
            output_dir=self.output_dir,
            force=force,
            dicom_seg=self._writes_dicom(),
        )
        sources = discover(self.dataset_dir, self.spatial_dims, identify, skip=self.output_dir)
        cases: list[dict[str, Any]] = []
        for number, source in enumerate(sources, 1):
            line = ProgressLine(f"{source.name} ({number}/{len(sources)})")
            case = self._case(task, source, line)
            write_json(self.output_dir / f"{source.name}.json", case)
            cases.append(case)
            line.end("ok" if case["status"] == "ok" else f"FAILED: {case['error']}", case["warnings"])
        failed = [case["case"] for case in cases if case["status"] != "ok"]
        summary = {"cases": cases, "ok": len(cases) - len(failed), "failed": failed, "model": task.model.description()}
        write_json(self.output_dir / "summary.json", summary)
        return summary

    def main(self) -> None:
        """Run as a command: 0 if all went well, 1 if a case failed, 2 if nothing could be run."""
        try:
            check_overrides(sys.argv, self.bundle_root / "configs" / "inference.json")
            # Not what Fire and MONAI made of them.
            self.dataset_dir = as_typed("dataset_dir", self.dataset_dir)
            self.output_dir = Path(as_typed("output_dir", self.output_dir))
            self.model_file = Path(as_typed("model_file", self.model_file))
            summary = self.run()
        except InputError as error:
            print(f"dacal_med: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        failed = summary["failed"]
        print(f"{summary['ok']} of {len(summary['cases'])} case(s) segmented: {self.output_dir / 'summary.json'}")
        if failed:
            print(f"dacal_med: failed: {', '.join(failed)}", file=sys.stderr, flush=True)
            sys.exit(1)

    def _case(self, task: Task, source: Source, line: ProgressLine) -> dict[str, Any]:
        case: dict[str, Any] = {"case": source.name, "status": "ok", "error": None}
        try:
            _remove(task.outputs(source.name))  # of an earlier run: they would belong to another result
            with tempfile.TemporaryDirectory(dir=self.output_dir, prefix=".dacal_med_") as scratch:
                return {**case, **task.run(source, Path(scratch), line.show)}
        except Exception as error:  # one image's trouble, whatever it is, is no other's
            text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            with suppress(OSError):  # what cannot be removed is no reason to end the others
                _remove(task.outputs(source.name))
            return {
                **case,
                "status": "failed",
                "error": source.clean(text),
                "warnings": list(task.model.warnings),
                "input": None,
                "model": task.model.description(),
                "trust": None,
                "outputs": {"segmentation": None, "dicom_seg": None, "confidence": None},
                "seconds": None,
            }

    def _writes_dicom(self) -> bool:
        if self.dicom_seg == "auto":
            return dicom_seg.available()
        wanted = _switch("dicom_seg", self.dicom_seg)
        if wanted and not dicom_seg.available():
            raise InputError(
                "dicom_seg: highdicom is not installed; wanted pip install highdicom, or --dicom_seg false"
            )
        return wanted


def _remove(outputs: Mapping[str, Path]) -> None:
    for path in outputs.values():
        path.unlink(missing_ok=True)


def _switch(key: str, value: bool | str) -> bool:
    """A switch as a command line gives it."""
    known = {"true": True, "false": False}
    text = str(value).lower()
    if text not in known:
        raise InputError(f"{key}: found {value!r}; wanted true or false")
    return known[text]


def check_overrides(argv: list[str], config: Path) -> None:
    """Refuse options that the configuration does not have; MONAI adds them silently, so that they change nothing.

    Raises:
        InputError: naming the option and the closest known one.
    """
    if "monai" not in Path(argv[0]).parts or not config.is_file():
        return
    known = [*json.loads(config.read_text(encoding="utf-8")), *inspect.signature(bundle.run).parameters]
    for word in argv[1:]:
        name = word[2:].partition("=")[0].replace("::", "#").partition("#")[0]
        if word.startswith("--") and name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise InputError(f"--{name}: found no such option" + (f"; did you mean --{close[0]}?" if close else ""))
