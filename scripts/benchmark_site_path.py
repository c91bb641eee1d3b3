# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Wall and CPU time of a site's whole path: a DICOM series in, segmentation, DICOM SEG, confidence and report out.

Writes one real volume as an axial DICOM series (resampled to its own voxel sizes along the patient's axes where it is
oblique), then runs the commands that a site runs, each in a process of its own, start of the interpreter included.

    python -m scripts.benchmark_site_path --site site --volume image.nii.gz --work /tmp/path
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.data import MetaTensor
from monai.transforms import LoadImage, Orientation, Spacing

from scripts.dicom_series import write_series


def as_series(volume: Path, folder: Path, modality: str) -> tuple[int, ...]:
    """Write a volume as a DICOM series.

    Args:
        volume: any 3D image that MONAI reads.
        folder: where.
        modality: ``"CT"`` or ``"MR"``.

    Returns:
        Columns, rows and slices.
    """
    image = LoadImage(image_only=True, ensure_channel_first=True)(str(volume))
    image = Orientation("LPS", labels=None)(image)
    assert isinstance(image, MetaTensor)
    voxel = [float(size) for size in image.pixdim]
    image = Spacing(voxel, recompute_affine=True)(image)
    assert isinstance(image, MetaTensor)
    array = image[0].numpy()
    # Signed 16 bits; MR has no unit, and CT fits as it is.
    scale = min(1.0, 32000 / float(np.abs(array).max()))
    values = np.rint(array * scale).astype(np.int16)
    slices = (values[:, :, k].T for k in range(values.shape[2]))
    write_series(folder, slices, voxel, modality)
    return tuple(values.shape)


def run(words: list[str], log: Path) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds.

    Raises:
        RuntimeError: it failed, with the end of what it said.
    """
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with log.open("w", encoding="utf-8") as output:
        code = subprocess.call([sys.executable, "-m", *words], stdout=output, stderr=subprocess.STDOUT)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code:
        raise RuntimeError(f"{words[0]}: ended with {code}\n{log.read_text(encoding='utf-8')[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print.

    Args:
        arguments: the command line without the program; that of the process by default.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--site", type=Path, required=True, help="an exported folder")
    parser.add_argument("--volume", type=Path, required=True, help="a real 3D image")
    parser.add_argument("--modality", choices=("CT", "MR"), default="MR", help="default: MR")
    parser.add_argument("--work", type=Path, required=True, help="folder for series and results; replaced")
    args = parser.parse_args(arguments)
    shutil.rmtree(args.work, ignore_errors=True)
    images, out, report = args.work / "dicom", args.work / "out", args.work / "report.html"
    size = as_series(args.volume, images, args.modality)
    print(f"{' x '.join(map(str, size))} voxels; {platform.machine()}, {os.cpu_count()} cores, no GPU\n")
    config = str(args.site / "configs" / "inference.json")
    inference = ["monai.bundle", "run", "--config_file", config, "--dataset_dir", str(images), "--output_dir", str(out)]
    reporting = ["dacal_med", "report", "--predictions", str(out), "--images", str(images), "--out", str(report)]
    rows = [
        ("inference, NIfTI, DICOM SEG, confidence, JSON", *run(inference, args.work / "inference.log")),
        ("report", *run(reporting, args.work / "report.log")),
    ]
    rows.append(("whole path", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    written = sorted(path.name for path in out.iterdir() if path.is_file())
    if not any(name.endswith("_seg.dcm") for name in written) or not report.is_file():
        raise RuntimeError(f"{out}: found {written}, wanted a DICOM SEG and a report")
    print("| stage | wall (s) | CPU (s) |\n|---|---:|---:|")
    print("\n".join(f"| {name} | {wall:.1f} | {cpu:.1f} |" for name, wall, cpu in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
