# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole way at a site: folders of images in, segmentations in the images' own geometry out."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import nrrd
import numpy as np
import pydicom
import pytest
import torch
from monai.bundle import ConfigParser
from PIL import Image

import dacal_med
from dacal_med.deploy.runtime import model, run
from dacal_med.io.errors import InputError
from tests.conftest import ROOT
from tests.deploy.runtime.builders import (
    LPS,
    NAME,
    PATIENT,
    ball,
    change,
    export_folder,
    inference,
    oblique,
    right_handed,
    run_command,
    write_series,
)
from tests.io.test_dicom import AXIAL

SPACING = {"axial": (0.8, 0.9, 2.5), "oblique": (1.5, 0.8, 2.5)}


def thresholded(array: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """What the network of `export_folder` finds in the bundle's preprocessing without resampling."""
    low, high = np.percentile(array, [1, 99])
    return (np.clip((array - low) / (high - low), 0, 1) > threshold).astype(np.uint8)


def outputs(folder: Path, case: dict[str, Any]) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    return nib.load(folder / case["outputs"]["segmentation"]), nib.load(folder / case["outputs"]["confidence"])


@pytest.mark.parametrize("reverse", [False, True], ids=["ordered", "reversed"])
@pytest.mark.parametrize(("name", "affine"), [("axial", AXIAL), ("oblique", oblique())])
def test_dicom_in_segmentation_out(tmp_path: Path, name: str, affine: np.ndarray, reverse: bool):
    array = ball((14, 12, 10))
    write_series(tmp_path / "in", array, affine, reverse=reverse)
    # The working grid keeps the voxels (RAS order of the sizes), so that the answer is known voxel by voxel.
    order = nib.orientations.io_orientation(affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[order] = SPACING[name]
    folder = export_folder(tmp_path / "site", spacing=spacing.tolist(), roi_size=(8, 8, 8))
    summary = inference(folder, tmp_path / "in", tmp_path / "out").run()
    (case,) = summary["cases"]
    assert case == json.loads((tmp_path / "out" / "case_0001.json").read_text())
    assert (case["status"], case["error"], summary["failed"]) == ("ok", None, [])
    segmentation, confidence = outputs(tmp_path / "out", case)
    own, own_affine = right_handed(array, affine)
    np.testing.assert_allclose(segmentation.affine, own_affine, atol=1e-4)
    np.testing.assert_allclose(confidence.affine, own_affine, atol=1e-4)
    found = np.asarray(segmentation.dataobj)
    np.testing.assert_array_equal(found, thresholded(own))
    assert 0.02 < found.mean() < 0.5
    assert found.dtype == np.uint8
    sure = np.asarray(confidence.dataobj)
    assert sure.min() >= 0.5 and sure.max() <= 1.0
    low, high = np.percentile(own, [1, 99])
    logit = 20 * (np.clip((own - low) / (high - low), 0, 1) - 0.5)
    np.testing.assert_allclose(sure, 1 / (1 + np.exp(-np.abs(logit))), atol=1e-4)
    # DICOM SEG: the same labels, slice by slice.
    seg = hd.seg.segread(tmp_path / "out" / case["outputs"]["dicom_seg"])
    lps = LPS @ own_affine
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        position = [*group.PlanePositionSequence[0].ImagePositionPatient, 1]
        index = round(float((np.linalg.inv(lps) @ np.array(position, dtype=float))[2]))
        np.testing.assert_array_equal(frame, found[..., index].T)
    assert len(seg.pixel_array) == int(found.any(axis=(0, 1)).sum())
    # What the JSON tells.
    assert case["input"] == {
        "format": "dicom",
        "shape": [14, 12, 10],
        "spacing_mm": pytest.approx(SPACING[name], abs=1e-5),
        "modality": "MR",
    }
    trust = case["trust"]["classes"]["hippocampus"]
    volume = np.prod(SPACING[name]) * 1e-3
    assert trust["predicted_volume"] == pytest.approx(found.sum() * volume, rel=1e-4)
    assert trust["expected_volume"] == pytest.approx((1 / (1 + np.exp(-logit))).sum() * volume, rel=1e-3)
    assert not list((tmp_path / "out").glob(".*"))


def test_the_answer_is_that_of_the_bundle(tmp_path: Path):
    """Resampled, with a network that sees its surroundings: site and bundle agree, other code for the whole way."""
    folder = export_folder(tmp_path / "site", spacing=(2.0, 1.5, 1.8), roi_size=(16, 16, 16), threshold=None)
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(ball((26, 33, 21)), oblique()), tmp_path / "in" / "a.nii.gz")
    (case,) = inference(folder, tmp_path / "in", tmp_path / "out").run()["cases"]
    own = ConfigParser(json.loads((ROOT / "bundles/dacal_site2site/configs/inference.json").read_text()))
    own.update({"spacing": [2.0, 1.5, 1.8], "roi_size": [16, 16, 16], "num_classes": 2, "device": torch.device("cpu")})
    own.update({"network_def#channels": [4, 8], "network_def#strides": [2], "network_def#num_res_units": 1})
    own.update({"model_file": str(folder / "models" / "model.pt"), "dataset_dir": str(tmp_path / "in")})
    own.update({"output_dir": str(tmp_path / "own")})
    own.get_parsed_content("run")
    segmentation, confidence = outputs(tmp_path / "out", case)
    wanted = np.asarray(nib.load(tmp_path / "own" / "a_seg.nii.gz").dataobj).squeeze()
    wanted_confidence = np.asarray(nib.load(tmp_path / "own" / "a_confidence.nii.gz").dataobj).squeeze()
    np.testing.assert_allclose(np.asarray(confidence.dataobj), wanted_confidence, atol=1e-4)
    different = np.asarray(segmentation.dataobj) != wanted
    assert different.mean() < 1e-4
    assert 0.05 < wanted.mean() < 0.95


def test_nrrd_and_a_sheared_nifti(tmp_path: Path):
    (tmp_path / "in").mkdir()
    affine = oblique()
    header = {"space": "left-posterior-superior"}
    header |= {"space directions": (LPS @ affine)[:3, :3].T, "space origin": (LPS @ affine)[:3, 3]}
    nrrd.write(str(tmp_path / "in" / "b.nrrd"), ball((14, 12, 10)), header)
    sheared = np.diag([2.0, 2.0, 2.0, 1.0])
    sheared[1, 2] = 0.7
    # The ball is round in the patient, not on the voxels.
    places = np.stack(np.meshgrid(*[np.arange(n) for n in (30, 34, 24)], indexing="ij"), -1)
    world = places @ sheared[:3, :3].T
    inside = np.linalg.norm(world - [30.0, 40.0, 24.0], axis=-1) < 14
    image = np.where(inside, 1000, 0).astype(np.int16)
    nib.save(nib.Nifti1Image(image, sheared), tmp_path / "in" / "a.nii.gz")
    folder = export_folder(tmp_path / "site", spacing=(1.0, 1.0, 1.0))
    first, second = inference(folder, tmp_path / "in", tmp_path / "out").run()["cases"]
    found, _ = outputs(tmp_path / "out", first)
    np.testing.assert_allclose(found.affine, sheared, atol=1e-6)
    labels = np.asarray(found.dataobj) == 1
    dice = 2 * (labels & inside).sum() / (labels.sum() + inside.sum())
    assert dice > 0.97
    assert np.linalg.norm(world[labels].mean(0) - [30.0, 40.0, 24.0]) < 0.2
    assert "degrees from orthogonal" in first["warnings"][0]
    found, _ = outputs(tmp_path / "out", second)
    np.testing.assert_allclose(found.affine, affine, atol=1e-5)
    assert (second["input"]["format"], second["outputs"]["dicom_seg"]) == ("nrrd", None)


@pytest.mark.parametrize(("first", "background"), [("background", 0), ("cytoplasm", None)])
def test_pictures(tmp_path: Path, first: str, background: int | None):
    (tmp_path / "in").mkdir()
    pixels = (ball((40, 30)).T / 4).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in" / "a.png")
    names = (first, "mitochondria")
    folder = export_folder(tmp_path / "site", "dacal_em", names, (1.0, 1.0), (16, 16))
    (case,) = inference(folder, tmp_path / "in", tmp_path / "out").run()["cases"]
    assert case["status"] == "ok", case["error"]
    with Image.open(tmp_path / "out" / "case_0001_seg.png") as image:
        np.testing.assert_array_equal(np.asarray(image), thresholded(pixels))
    with Image.open(tmp_path / "out" / "case_0001_confidence.png") as image:
        assert image.size == (40, 30)
    assert (case["input"]["format"], case["input"]["spacing_mm"], case["trust"]["unit"]) == ("picture", None, "pixels")
    trust = case["trust"]
    assert (trust["class_names"], trust["background"]) == (list(names), background)
    sizes = np.bincount(thresholded(pixels).ravel()).tolist()
    wanted = dict(zip(names, sizes, strict=True)) if background is None else {"mitochondria": sizes[1]}
    assert {name: found["predicted_volume"] for name, found in trust["classes"].items()} == wanted


def test_one_bad_case_does_not_stop_the_others(tmp_path: Path):
    (tmp_path / "in").mkdir()
    good = ball((10, 9, 8))
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 3, np.int16), np.eye(4)), tmp_path / "in" / "1_constant.nii.gz")
    (tmp_path / "in" / "2_damaged.nii.gz").write_bytes(b"damaged")
    nib.save(nib.Nifti1Image(good, np.eye(4)), tmp_path / "in" / "3_good.nii.gz")
    nib.save(nib.Nifti1Image(np.where(good > 600, np.nan, good), np.eye(4)), tmp_path / "in" / "4_nan.nii.gz")
    folder = export_folder(tmp_path / "site")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "case_0001_seg.nii.gz").write_bytes(b"of an earlier run")
    summary = inference(folder, tmp_path / "in", tmp_path / "out").run()
    assert [case["status"] for case in summary["cases"]] == ["failed", "failed", "ok", "failed"]
    assert (summary["ok"], summary["failed"]) == (1, ["case_0001", "case_0002", "case_0004"])
    errors = [case["error"] for case in summary["cases"]]
    assert "the one value 3" in errors[0]
    assert "cannot be read as NIfTI" in errors[1]
    assert "NaN" in errors[3]
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == [
        *("case_0001.json", "case_0002.json", "case_0003.json"),
        *("case_0003_confidence.nii.gz", "case_0003_seg.nii.gz", "case_0004.json", "summary.json"),
    ]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(ball((40, 40, 40)), np.eye(4)), tmp_path / "in" / "a.nii.gz")
    service = inference(export_folder(tmp_path / "site"), tmp_path / "in", tmp_path / "out")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # Writing beyond it fails in the middle, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        (case,) = service.run()["cases"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert case["status"] == "failed"
    assert "too large" in case["error"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_0001.json", "summary.json"]
    usage = os.statvfs(tmp_path)
    values = [usage[index] for index in range(10)]
    monkeypatch.setattr(
        "os.statvfs", lambda folder: os.statvfs_result([*values[:4], 65 * 2**20 // usage.f_frsize, *values[5:]])
    )
    monkeypatch.setattr("dacal_med.deploy.runtime.case._MIB", 1000)  # as if the image were a thousand times larger
    (case,) = service.run()["cases"]
    assert "65 MiB free on its disk, wanted" in case["error"]


def test_what_stops_everything(tmp_path: Path):
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(ball((8, 8, 8)), np.eye(4)), tmp_path / "in" / "a.nii.gz")
    folder = export_folder(tmp_path / "site")
    (tmp_path / "file").write_text("no folder")
    for options, match in (
        ({"output_dir": tmp_path / "file" / "out"}, "cannot be written"),
        ({"dataset_dir": ""}, "dataset_dir: not given"),
        ({"dataset_dir": tmp_path / "absent"}, "no such file or folder"),
        ({"force": "yes"}, "force: found 'yes'; wanted true or false"),
        ({"model_file": str(tmp_path / "absent.pt")}, "model_file: .*absent.pt not found"),
    ):
        given = {"dataset_dir": tmp_path / "in", "output_dir": tmp_path / "out"} | options
        with pytest.raises(InputError, match=match):
            inference(folder, **given).run()
    weights = folder / "models" / "model.pt"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match=r"models/model.pt was changed"):
        inference(folder, tmp_path / "in", tmp_path / "out").run()


def test_another_modality_wants_force(tmp_path: Path):
    write_series(tmp_path / "in", ball((9, 8, 7)), AXIAL, "MR")
    folder = export_folder(tmp_path / "site", modality="CT")
    (case,) = inference(folder, tmp_path / "in", tmp_path / "out").run()["cases"]
    assert "found modality MR; this model is made for CT; --force true" in case["error"]
    (case,) = inference(folder, tmp_path / "in", tmp_path / "out", force="true").run()["cases"]
    assert case["status"] == "ok"
    assert "because of --force" in case["warnings"][0]


def test_without_highdicom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_series(tmp_path / "in", ball((9, 8, 7)), AXIAL)
    folder = export_folder(tmp_path / "site")
    monkeypatch.setattr("dacal_med.deploy.runtime.dicom_seg.available", lambda: False)
    (case,) = inference(folder, tmp_path / "in", tmp_path / "out").run()["cases"]
    assert (case["status"], case["outputs"]["dicom_seg"]) == ("ok", None)
    assert "highdicom is not installed" in case["warnings"][0]
    with pytest.raises(InputError, match="pip install highdicom"):
        inference(folder, tmp_path / "in", tmp_path / "out", dicom_seg="true").run()


def test_torchscript_gives_the_same(tmp_path: Path):
    write_series(tmp_path / "in", ball((20, 18, 17)), AXIAL)
    folder = export_folder(tmp_path / "site", threshold=None)
    service = inference(folder, tmp_path / "in", tmp_path / "one")
    service.run()
    network = service.network.eval()
    torch.jit.trace(network, torch.zeros(1, 1, 16, 16, 16)).save(str(tmp_path / "model.ts"))
    inference(folder, tmp_path / "in", tmp_path / "two", model_file=str(tmp_path / "model.ts")).run()
    for name in ("case_0001_seg.nii.gz", "case_0001_confidence.nii.gz"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def secrets(files: list[Path]) -> list[str]:
    header = pydicom.dcmread(files[0])
    uids = [header.SeriesInstanceUID, header.StudyInstanceUID, header.SOPInstanceUID, header.FrameOfReferenceUID]
    return [*NAME.split("^"), PATIENT, "19700101", *uids, "IM0001", "IM0003"]


def test_the_command(tmp_path: Path):
    """As the site runs it, from the folder of another export: no dacal_med, no names, exit status by what failed."""
    good = write_series(tmp_path / "in" / "Doe", ball((14, 12, 10)), AXIAL)
    bad = write_series(tmp_path / "in" / "Jane", ball((14, 12, 10)), AXIAL)
    change(bad[3], ImagePositionPatient=pydicom.dcmread(bad[2]).ImagePositionPatient)
    folder = export_folder(tmp_path / "site")
    other = export_folder(tmp_path / "other", names=("background", "another model"))
    link = tmp_path / "images"  # what the user types is shown by MONAI
    link.symlink_to(tmp_path / "in")
    done = run_command(folder, other, dataset_dir=link, output_dir=tmp_path / "out")
    assert done.returncode == 1, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["ok"] == 1
    (failed,) = [case for case in summary["cases"] if case["status"] == "failed"]
    assert "file 3 of 10 and file 4 of 10 lie at the same place" in failed["error"]
    assert failed["case"] in done.stderr
    names = [name for case in summary["cases"] if case["trust"] for name in case["trust"]["classes"]]
    assert names == ["hippocampus"]
    told = done.stdout + done.stderr
    for path in (tmp_path / "out").iterdir():
        told += path.name + (path.read_text() if path.suffix == ".json" else "")
    for secret in secrets(good) + secrets(bad):
        assert secret not in told, secret


def test_names_if_asked_for(tmp_path: Path):
    write_series(tmp_path / "in" / "Doe", ball((9, 8, 7)), AXIAL)
    folder = export_folder(tmp_path / "site")
    inference(folder, tmp_path / "in", tmp_path / "out", identify="true").run()
    case = json.loads((tmp_path / "out" / f"{PATIENT}_3.json").read_text())
    assert case["input"]["files"][0] == "Doe/IM0001.dcm"
    assert (tmp_path / "out" / f"{PATIENT}_3_seg.dcm").is_file()


def test_a_long_file_name_is_no_other_cases_trouble(tmp_path: Path):
    (tmp_path / "in").mkdir()
    name = "x" * 247 + ".nii.gz"
    for file in (name, "a.nii.gz"):
        nib.save(nib.Nifti1Image(ball((9, 8, 7)), np.eye(4)), tmp_path / "a.nii.gz")
        (tmp_path / "a.nii.gz").rename(tmp_path / "in" / file)
    summary = inference(export_folder(tmp_path / "site"), tmp_path / "in", tmp_path / "out", identify=True).run()
    assert (summary["ok"], summary["failed"]) == (2, [])
    assert summary["cases"][1]["input"]["files"] == [name]


def test_an_output_that_cannot_be_removed_fails_its_case_alone(tmp_path: Path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        nib.save(nib.Nifti1Image(ball((9, 8, 7)), np.eye(4)), tmp_path / "in" / f"{name}.nii")
    (tmp_path / "out" / "case_0001_seg.nii.gz").mkdir(parents=True)
    summary = inference(export_folder(tmp_path / "site"), tmp_path / "in", tmp_path / "out").run()
    assert (summary["ok"], summary["failed"]) == (1, ["case_0001"])
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary


def test_the_exit_status(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    write_series(tmp_path / "in", ball((9, 8, 7)), AXIAL)
    service = inference(export_folder(tmp_path / "site"), tmp_path / "in", tmp_path / "out")
    service.main()  # returns where all went well
    assert "1 of 1 case(s) segmented" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["/lib/monai/bundle/__main__.py", "run", "--ouput_dir", "x"])
    with pytest.raises(SystemExit) as stopped:
        service.main()
    assert stopped.value.code == 2
    assert "--ouput_dir: found no such option; did you mean --output_dir?" in capsys.readouterr().err


def test_overrides_are_only_checked_on_monais_command_line(tmp_path: Path):
    config = tmp_path / "inference.json"
    config.write_text('{"dataset_dir": ""}')
    run.check_overrides(["pytest", "--what"], config)
    run.check_overrides(["/lib/monai/bundle/__main__.py", "run", "--dataset_dir=x", "--config_file", "y"], config)
    with pytest.raises(InputError, match="--dataset: found no such option; did you mean --dataset_dir"):
        run.check_overrides(["/lib/monai/bundle/__main__.py", "run", "--dataset", "x"], config)


def test_real_dicom_in_and_out(tmp_path: Path, shared_data: Path):
    """A CT of `sts_ct2mr` as DICOM: read back voxel by voxel, segmented in its own geometry."""
    image = nib.load(shared_data / "sts_ct2mr" / "ct" / "images" / "STS_013.nii.gz")
    array = np.asarray(image.dataobj)
    files = write_series(tmp_path / "in", array, image.affine, "CT", intercept=-1024)
    assert len(files) == 112
    folder = export_folder(tmp_path / "site", "dacal_ct2mr", ("background", "tumour"), (3.0, 3.0, 3.0), modality="CT")
    (case,) = inference(folder, tmp_path / "in", tmp_path / "out").run()["cases"]
    own, own_affine = right_handed(array, image.affine)
    segmentation, _ = outputs(tmp_path / "out", case)
    np.testing.assert_allclose(segmentation.affine, own_affine, atol=1e-3)
    np.testing.assert_array_equal(np.asarray(segmentation.dataobj), thresholded(own))


def test_another_version_of_dacal_med_is_refused_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Forced, each case says so, one that fails too."""
    (tmp_path / "in").mkdir()
    nib.save(nib.Nifti1Image(ball((9, 8, 7)), np.eye(4)), tmp_path / "in" / "a.nii.gz")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"no image")
    folder = export_folder(tmp_path / "site")
    monkeypatch.setattr(model, "__version__", "9.8.7")
    told = f"exported with dacal_med {dacal_med.__version__}, running dacal_med 9.8.7"
    with pytest.raises(InputError, match=rf"^{told}; wanted pip install -r requirements.txt in .*site, or --force"):
        inference(folder, tmp_path / "in", tmp_path / "out").run()
    assert list((tmp_path / "out").iterdir()) == []
    first, second = inference(folder, tmp_path / "in", tmp_path / "out", force="true").run()["cases"]
    assert (first["status"], second["status"]) == ("ok", "failed")
    assert first["warnings"][0] == told and second["warnings"] == [told]
