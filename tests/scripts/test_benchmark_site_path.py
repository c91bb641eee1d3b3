# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a site's path on a tiny volume: the series it writes, the commands it runs, what it refuses."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dacal_med import cli
from dacal_med.io.dicom import open_series
from scripts import benchmark_site_path as benchmark
from tests.deploy.runtime.builders import ball, export_folder, inference

VOXEL = (1.5, 2.0, 2.5)


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.nii.gz"
    nib.save(nib.Nifti1Image(ball((14, 12, 10)), np.diag([*VOXEL, 1.0])), path)
    return path


def series_of(folder: Path) -> tuple[np.ndarray, tuple[float, ...]]:
    found = open_series(sorted(folder.iterdir()), "series", str)
    return found.voxels()[0], tuple(np.linalg.norm(found.header.affine[:3, :3], axis=0))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_series_is_the_volume(volume: Path, tmp_path: Path, modality: str):
    assert benchmark.as_series(volume, tmp_path / "dicom", modality) == (14, 12, 10)
    array, voxel = series_of(tmp_path / "dicom")
    # NIfTI counts to the right and to the front, DICOM to the left and to the back.
    np.testing.assert_array_equal(array, ball((14, 12, 10))[::-1, ::-1])
    assert voxel == pytest.approx(VOXEL)


def test_values_beyond_16_bits_are_scaled(tmp_path: Path):
    values = ball((8, 7, 6)).astype(np.float32) * 1000
    nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "large.nii.gz")
    benchmark.as_series(tmp_path / "large.nii.gz", tmp_path / "dicom", "MR")
    array, _ = series_of(tmp_path / "dicom")
    assert np.abs(array).max() == 32000
    np.testing.assert_allclose(array * (np.abs(values).max() / 32000), values[::-1, ::-1], atol=20)


def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seg: bool = True) -> list[str]:
    """Run its commands in this process, each taking one second of time and two of the processor's."""
    site = export_folder(tmp_path / "site", modality="MR")
    ran = []

    def run(words: list[str], log: Path) -> tuple[float, float]:
        ran.append(" ".join(words[:2]))
        if words[0] == "dacal_med":
            assert cli.main(words[1:]) == 0
        else:
            options = dict(zip(words[2::2], words[3::2], strict=True))
            assert options["--config_file"] == str(site / "configs" / "inference.json")
            place, out = options["--dataset_dir"], Path(options["--output_dir"])
            assert inference(site, place, out, dicom_seg=seg).run()["failed"] == []
        return 1.0, 2.0

    monkeypatch.setattr(benchmark, "run", run)
    return ran


def test_every_stage_is_run_and_summed(volume: Path, tmp_path: Path, monkeypatch, capsys):
    ran = commands(tmp_path, monkeypatch)
    words = ["--site", str(tmp_path / "site"), "--volume", str(volume), "--work", str(tmp_path / "work")]
    assert benchmark.main(words) == 0
    assert ran == ["monai.bundle run", "dacal_med report"]
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("14 x 12 x 10 voxels;") for line in lines)
    rows = [line for line in lines if line.startswith("| ")]
    assert rows[1:] == [
        "| inference, NIfTI, DICOM SEG, confidence, JSON | 1.0 | 2.0 |",
        "| report | 1.0 | 2.0 |",
        "| whole path | 2.0 | 4.0 |",
    ]
    assert (tmp_path / "work" / "report.html").is_file()
    assert len(list((tmp_path / "work" / "out").glob("*_seg.dcm"))) == 1


def test_a_path_without_dicom_seg_is_no_measurement(volume: Path, tmp_path: Path, monkeypatch):
    commands(tmp_path, monkeypatch, seg=False)
    words = ["--site", str(tmp_path / "site"), "--volume", str(volume), "--work", str(tmp_path / "work")]
    with pytest.raises(RuntimeError, match=r"wanted a DICOM SEG and a report"):
        benchmark.main(words)


def test_a_command_is_timed_in_a_process_of_its_own(tmp_path: Path):
    (tmp_path / "a.json").write_text("[1]")
    wall, cpu = benchmark.run(["json.tool", str(tmp_path / "a.json")], tmp_path / "log")
    assert (tmp_path / "log").read_text().split() == ["[", "1", "]"]
    assert wall > 0 and cpu > 0


def test_a_command_that_fails_is_told_with_what_it_said(tmp_path: Path):
    (tmp_path / "a.json").write_text("[1")
    with pytest.raises(RuntimeError, match=r"json\.tool: ended with 1\n.*delimiter"):
        benchmark.run(["json.tool", str(tmp_path / "a.json")], tmp_path / "log")
