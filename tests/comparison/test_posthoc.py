# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Post-hoc calibration of a network: fitted where its definition says, measured like the network itself."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from dacal_med.comparison import posthoc
from dacal_med.comparison.methods import CALIBRATORS
from dacal_med.comparison.posthoc import DONE, PostHocCalibration
from dacal_med.engines import CalibrationEvaluator
from dacal_med.handlers.sums import load_sums
from dacal_med.io.errors import InputError

NAMES = ["background", "one"]


class Sharp(nn.Module):
    """Class 1 at a log-odds of ``scale`` times the image's."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, image):
        return torch.cat([torch.zeros_like(image), self.scale * image], dim=1)


def items(count: int, dims: int, seed: int, flip: float = 0.0) -> list[dict[str, torch.Tensor]]:
    """Images of log-odds, labels drawn from them; ``flip`` of the labels are wrong."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for _ in range(count):
        image = 2 * torch.randn(1, *[24 if dims == 2 else 9] * dims, generator=generator)
        label = torch.rand(image.shape, generator=generator) < image.sigmoid()
        wrong = torch.rand(image.shape, generator=generator) < flip
        result.append({"image": image, "label": (label ^ wrong).long()})
    return result


def calibration(tmp_path, dims, names, scale=3.0, held_out=4, flip=0.0):
    evaluator = CalibrationEvaluator("cpu", items(3, dims, 9, flip), nn.Identity(), NAMES, boundary_width=0)
    folders = {name: tmp_path / name for name in names}
    return PostHocCalibration(
        folders, evaluator, Sharp(scale), items(held_out, dims, 1), items(3, dims, 2), tmp_path / "own"
    )


@pytest.mark.parametrize("dims", [2, 3])
def test_every_calibrator_is_fitted_measured_and_written(tmp_path, dims):
    calibration(tmp_path, dims, CALIBRATORS).run()
    fitted = json.loads((tmp_path / "own" / DONE).read_text())
    assert set(fitted) == set(CALIBRATORS)
    # The network is three times too sure of itself.
    assert fitted["ts"]["temperature"] == pytest.approx(3.0, rel=0.15)
    assert fitted["ts_oracle"]["temperature"] == pytest.approx(3.0, rel=0.15)
    for name in CALIBRATORS:
        metrics = json.loads((tmp_path / name / "metrics.json").read_text())
        sums = load_sums(tmp_path / name / "statistics.pt")
        assert json.loads((tmp_path / name / "calibrator.json").read_text()) == fitted[name]
        assert len(sums.cases) == 3 and sums.class_names == tuple(NAMES)
        assert metrics["after"]["voxels"] == sum(int(case.voxel_count[0].sum()) for case in sums.cases)
        assert metrics["seconds"] >= 0 and metrics["peak_memory_mib"] > 0
        if name != "pseudocal":
            assert metrics["after"]["ece"] < 0.5 * metrics["before"]["ece"]


def test_before_is_what_the_evaluator_measures(tmp_path):
    job = calibration(tmp_path, 2, ["ts"])
    job.run()
    job.evaluator.network = job.network
    job.evaluator.run()
    before = json.loads((tmp_path / "ts" / "metrics.json").read_text())["before"]
    assert before["nll"] == pytest.approx(job.evaluator.scores["nll"], rel=1e-6)
    assert before["ece"] == pytest.approx(job.evaluator.scores["ece"], rel=1e-6)


def test_target_labels_reach_the_oracle_alone(tmp_path):
    names = list(CALIBRATORS)
    found = {}
    for flip in (0.0, 0.4):
        folder = tmp_path / str(flip)
        calibration(folder, 2, names, flip=flip).run()
        found[flip] = json.loads((folder / "own" / DONE).read_text())
    for name in names:
        assert (found[0.0][name] == found[0.4][name]) == (name != "ts_oracle")


def test_large_images_are_fitted_on_a_part(tmp_path, monkeypatch):
    monkeypatch.setattr(posthoc, "MAX_VOXELS_PER_IMAGE", 100)
    job = calibration(tmp_path, 2, ["ts"])
    kept = job._predictions(job.held_out)
    assert all(p.label.shape == (1, 1, 10, 10) and p.probabilities.shape == (1, 2, 10, 10) for p in kept)
    whole = job.held_out[0]["image"]
    rows = whole.unfold(1, 10, 1).unfold(2, 10, 1)[0].flatten(0, 1)
    assert bool((rows == kept[0].image[0, 0]).flatten(1).all(dim=1).any())  # a box of the image, not a resampling


def test_what_cannot_work_is_refused(tmp_path):
    with pytest.raises(InputError, match="calibrators: found"):
        calibration(tmp_path, 2, ["platt"])
    with pytest.raises(InputError, match="held_out_share"):
        calibration(tmp_path, 2, ["ts"], held_out=0)
    calibration(tmp_path, 2, ["pseudocal", "ts_oracle"], held_out=0).run()
