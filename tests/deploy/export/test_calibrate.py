# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``python -m dacal_med calibrate``, from labelled cases to a calibrated folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dacal_med.comparison.calibrators import TemperatureScaling, VectorScaling
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.data.datalist import load_cases
from dacal_med.deploy.export import calibrating
from dacal_med.deploy.export.calibrating import TARGET, Calibration, by_definition, calibrated, folds, held_out, wrapped
from dacal_med.deploy.export.calibration_report import CalibrationReport, with_calibration
from dacal_med.deploy.export.checking import load_format, load_network
from dacal_med.deploy.export.deployed import read_json
from dacal_med.deploy.export.labelled import LabelledCases
from dacal_med.deploy.export.layout import FORMATS
from dacal_med.deploy.runtime import checksums, model
from dacal_med.engines.evaluator import predict_probabilities
from dacal_med.io.errors import InputError
from tests.bundles.builders import STREETS, Bundle
from tests.deploy.export.builders import FIRST, convert_here, label_as_cases


@pytest.fixture(scope="session")
def cases(run_of) -> Path:
    """Labelled cases of the smallest bundle."""
    return label_as_cases(run_of(FIRST.name).parent / "data")


@pytest.fixture
def here(monkeypatch) -> None:
    """Convert in this process."""
    monkeypatch.setattr(calibrating, "convert", convert_here)


def labelled(site: Path, cases: Path) -> LabelledCases:
    config = read_json(site / "configs" / "deploy.json")
    return LabelledCases(config, load_cases(cases), load_network(site), seed=0)


def test_recorded_windows_average_to_what_inference_predicts(site, cases):
    data = labelled(site, cases)
    _, sample = data.recorded(1)
    image, label = data._item(1)
    with torch.no_grad():
        wanted = predict_probabilities(data._inferer, data.network, image)[0].flatten(1).T
    average = torch.zeros(len(sample.labels), wanted.shape[1])
    average.index_add_(0, sample.voxel, sample.importance[:, None] * sample.logits.softmax(dim=1))
    average /= average.sum(dim=1, keepdim=True)
    # Which voxel was drawn is not recorded; all of these images are, so that both are the same rows in another order.
    assert len(sample.labels) == label.numel()
    np.testing.assert_allclose(np.sort(average[:, 1]), np.sort(wanted[:, 1]), atol=1e-5)
    assert torch.equal(sample.labels.bincount(), label.flatten().bincount())


def test_a_calibrated_folder_predicts_what_the_calibrator_says_in_every_format(site, cases, tmp_path, here):
    out = tmp_path / "calibrated"
    report = Calibration(site, cases, out, always=True).run()
    temperature = report.fitted["temperature"]
    image = torch.rand(2, 1, 24, 16)
    before = load_network(site)(image)
    for name in FORMATS:
        logits = load_format(out, name)(image)
        torch.testing.assert_close(logits, before / temperature, rtol=1e-4, atol=1e-5)
        assert torch.equal(logits.argmax(dim=1), before.argmax(dim=1))
    assert checksums.verify(out) > 0
    assert not (out / "configs" / "trust.json").exists()
    definition = read_json(out / "configs" / "inference.json")["network_def"]
    assert definition["_target_"] == TARGET
    found = json.loads((out / "docs" / "calibration.json").read_text())
    assert found["fitted"] == {"temperature": temperature} and found["cases"] == 4
    assert str(cases.parent) not in (out / "docs" / "calibration.json").read_text()
    assert f"temperature {temperature:.4g}" in (out / "docs" / "README.md").read_text()
    # A network of random weights is far from calibrated, and a second fit starts from the network inside.
    again = Calibration(out, cases, tmp_path / "again").run()
    assert report.better and not again.better
    assert again.fitted["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("bundle", [FIRST, pytest.param(STREETS, marks=pytest.mark.slow)], ids=lambda b: b.name)
def test_per_class(bundle, site_of, run_of, tmp_path, here):
    out = tmp_path / "out"
    logits, wanted, image = per_class(bundle, site_of(bundle.name), run_of(bundle.name).parent / "data", out)
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(load_format(out, "model.onnx")(image), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bundle", [STREETS], ids=lambda b: b.name)
def test_streets_per_class(bundle, site_of, run_of, tmp_path, monkeypatch):
    """Fitted to few pixels and not converted, which takes a minute."""
    monkeypatch.setattr("dacal_med.deploy.export.labelled.VOXELS_PER_CASE", 500)
    monkeypatch.setattr(calibrating, "convert", lambda folder: None)
    monkeypatch.setattr(calibrating, "check_formats", lambda *_: None)
    data = run_of(bundle.name).parent / "data"
    logits, wanted, _ = per_class(bundle, site_of(bundle.name), data, tmp_path / "out")
    torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)


def per_class(bundle: Bundle, site: Path, data: Path, out: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Calibrate per class; return the logits of an image, those that the report says, and the image."""
    # With so many classes and so few pixels it may help no held-out case, and is to be written all the same.
    report = Calibration(site, label_as_cases(data), out, per_class=True, always=bundle.streets).run()
    assert report.better or bundle.streets
    assert set(report.fitted) == {"weight", "bias"}
    image = torch.rand(1, bundle.in_channels, 64, 64)
    weight, bias = (torch.tensor(report.fitted[key]).view(1, -1, 1, 1) for key in ("weight", "bias"))
    return load_network(out)(image), load_network(site)(image) * weight + bias, image


def test_too_few_cases(site, cases, tmp_path):
    content = json.loads(cases.read_text())
    few = cases.parent / "few.json"
    few.write_text(json.dumps({**content, "cases": content["cases"][:2]}))
    with pytest.raises(InputError, match=r"found 2 case\(s\), wanted 3 or more"):
        Calibration(site, few, tmp_path / "out").run()
    of_one = [{**case, "patient": f"p{k % 2}"} for k, case in enumerate(content["cases"])]
    few.write_text(json.dumps({**content, "cases": of_one}))
    with pytest.raises(InputError, match=rf"found {len(of_one)} case\(s\) of 2 patient\(s\), wanted 3 or more"):
        Calibration(site, few, tmp_path / "out").run()


def test_other_classes(site, cases, tmp_path):
    content = json.loads(cases.read_text())
    other = cases.parent / "other.json"
    other.write_text(json.dumps({**content, "labels": {**content["labels"], "1": "nuclei"}}))
    with pytest.raises(InputError, match="found the classes background, nuclei, wanted those of"):
        Calibration(site, other, tmp_path / "out").run()


def test_evaluation_cases_are_not_taken_for_cases_to_fit_on(site, cases, tmp_path):
    with pytest.raises(InputError, match=r"missing the key\(s\) cases"):
        Calibration(site, cases.parent, tmp_path / "out").run()


def test_a_changed_folder(site, cases, tmp_path):
    changed = shutil.copytree(site, tmp_path / "site")
    with (changed / "configs" / "deploy.json").open("a") as stream:
        stream.write("\n")
    with pytest.raises(InputError, match=r"configs/deploy.json was changed"):
        Calibration(changed, cases, tmp_path / "out").run()


def test_a_folder_of_another_version(site, cases, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "__version__", "9.8.7")
    with pytest.raises(InputError, match=r"site: exported with dacal_med .*, running dacal_med 9\.8\.7; wanted"):
        Calibration(site, cases, tmp_path / "out").run()


@pytest.mark.parametrize("number", [3, 10, 11, 14])
def test_every_case_is_held_out_once(number):
    parts = folds([{"image": str(k)} for k in range(number)])
    assert parts == [list(range(k, number, len(parts))) for k in range(len(parts))]
    assert len(parts) == (number if number <= 10 else 5)


@pytest.mark.parametrize(("number", "wanted"), [(4, "each patient"), (12, "a fifth of the patients")])
def test_cases_of_a_patient_are_held_out_together(number, wanted):
    cases = [{"image": str(k), "patient": f"p{k % number}"} for k in range(2 * number)]
    parts = folds(cases)
    assert sorted(k for part in parts for k in part) == list(range(2 * number))
    assert all((k + number) % (2 * number) in part for part in parts for k in part)
    assert len(parts) == (number if number <= 10 else 5)
    assert held_out(cases) == wanted
    assert held_out(cases[:number]) == wanted.replace("patient", "case")


def test_wrapping_twice_wraps_once():
    once = wrapped({"_target_": "UNet"}, 3, 2)
    assert wrapped(once, 3, 2) == once
    assert once["network"] == {"_target_": "UNet"}


@pytest.mark.parametrize("fitted", [TemperatureScaling(1.7), VectorScaling((0.5, 1.5), (0.25, -0.25))])
def test_the_wrapper_is_the_scaling_of_logits(fitted):
    base = torch.nn.Conv2d(1, 2, 3, padding=1)
    image = torch.randn(2, 1, 8, 9)
    with torch.no_grad():
        found = calibrated(base, fitted, 2, 2)(image)
        torch.testing.assert_close(found, by_definition(base, fitted)(image))
        if isinstance(fitted, TemperatureScaling):
            torch.testing.assert_close(found.softmax(dim=1), fitted(base(image).softmax(dim=1), image))
        else:
            torch.testing.assert_close(found[:, 1], 1.5 * base(image)[:, 1] - 0.25)


def statistics(*pairs: tuple[float, int]) -> SegmentationStatistics:
    """The sums of an image with voxels of class 1, each predicted with a probability."""
    result = SegmentationStatistics(2, background=0)
    p = torch.tensor([[p for p, n in pairs for _ in range(n)]])
    result.update(torch.stack([1 - p, p], dim=1), torch.ones(1, 1, p.shape[1], dtype=torch.long))
    return result


def report_of(before: list[float], after: list[float]) -> CalibrationReport:
    sums = [tuple(statistics((p, 8)) for p in values) for values in (before, after)]
    return CalibrationReport(("background", "liver"), {"temperature": 2.0}, "each case", *sums)


def test_better_is_said_only_of_what_is_better_beyond_chance():
    assert report_of([0.6, 0.7, 0.8], [0.7, 0.8, 0.9]).better
    assert not report_of([0.7, 0.8, 0.9], [0.6, 0.7, 0.8]).better
    # Better on the average, by one case alone.
    unsure = report_of([0.6, 0.7, 0.8], [0.9, 0.7, 0.79])
    assert unsure.differences["nll"]["difference"] < 0 and not unsure.better
    assert "did not get better" in unsure.verdict() and "Nothing is written" in unsure.verdict()
    one = report_of([0.6, 0.7, 0.8], [0.7, 0.8, 0.9])
    # Means of -log p by hand.
    assert "| NLL | 0.3635 | 0.2284 | -0.1352 [" in one.table()


def test_the_card_has_one_calibration_however_often_it_is_done():
    first, second = report_of([0.6] * 3, [0.7] * 3), report_of([0.6] * 3, [0.8] * 3)
    card = with_calibration(with_calibration("# Card\n\ntext\n", first), second)
    assert card.startswith("# Card\n\ntext\n\n## Calibrated")
    assert card.count("## Calibrated at the site") == 1
    assert "0.2231" in card
