# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Before and after: what a run writes, and that evaluation changes nothing about training."""

from __future__ import annotations

import csv
import json
import math
import os
import signal

import pytest
import torch
from ignite.engine import Events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from dacal_med.engines import CalibrationEvaluator
from dacal_med.handlers import AdaptationReport, EvaluationReport, Progress, ResumableCheckpoint
from dacal_med.handlers.progress import shown
from dacal_med.handlers.sums import load_sums
from dacal_med.io.errors import InputError
from tests.engines.builders import blobs, tiny_trainer, weights

NAMES = ["background", "one", "two"]


def report_on(folder, trainer, dims=2, count=3, names=NAMES, groups=None, evaluated=None, **options):
    data = blobs(count, dims, -1.0, 9)
    if groups is not None:
        data = [{**item, "group": group} for item, group in zip(data, groups, strict=True)]
    evaluator = CalibrationEvaluator("cpu", data, trainer.network, names, **(evaluated or {}))
    report = AdaptationReport(EvaluationReport(evaluator, folder), folder, folder / "model.pt", **options)
    report.attach(trainer)
    return report


@pytest.mark.parametrize("dims", [2, 3])
def test_writes_metrics_cases_picture_weights_and_a_table(tmp_path, capsys, monkeypatch, dims):
    monkeypatch.setattr(SummaryWriter, "add_figure", lambda *_, **__: None)  # but the picture is drawn
    trainer = tiny_trainer(dims)
    report_on(tmp_path, trainer, dims, task={"num_classes": 3})
    trainer.run()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"before", "after", "seconds", "peak_memory_mib", "skipped"}
    for moment in ("before", "after"):
        assert {"dice", "miou", "ece", "foreground_ece", "nll", "per_class", "per_case"} <= set(metrics[moment])
        assert list(metrics[moment]["per_class"]) == NAMES
    assert metrics["before"] != metrics["after"]
    assert metrics["seconds"] > 0
    assert metrics["peak_memory_mib"] > 50
    assert metrics["skipped"] == {"skipped": 0, "meta_skipped": 0, "overflows": 0}
    assert json.loads((tmp_path / "model.json").read_text()) == {"num_classes": 3}
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, value in trainer.teacher.network.state_dict().items():
        assert torch.equal(state[name], value)
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["0", "1", "2"]
    assert [row["group"] for row in rows] == ["", "", ""]
    mean = sum(float(row["ece"]) for row in rows) / 3
    assert mean == pytest.approx(metrics["after"]["per_case"]["ece"]["mean"], rel=1e-4)
    assert (tmp_path / "reliability.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "before" in printed
    assert f"{metrics['after']['dice']:.4f}" in printed
    assert "model.pt" in printed


@pytest.mark.parametrize(("host", "labeller"), [("dacs", "learned"), ("dacs", "hard"), ("source_only", "learned")])
@pytest.mark.usefixtures("no_figures")
def test_the_temperature_map_is_related_to_errors_where_one_is_learned(tmp_path, host, labeller):
    trainer = tiny_trainer(host=host, labeller=labeller, meta={"every": 1, "learning_rate": 0.005})
    report_on(tmp_path, trainer)
    trainer.run()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    if (host, labeller) != ("dacs", "learned"):
        assert "temperature" not in metrics["after"]
        return
    before, after = metrics["before"]["temperature"], metrics["after"]["temperature"]
    # A fresh network gives 1 everywhere, which says nothing.
    assert before["mean"] == pytest.approx(1.0, rel=3e-3)
    assert (before["std"], before["auroc"], before["at_bounds"]) == (pytest.approx(0.0, abs=1e-6), 0.5, 0.0)
    assert after["std"] > 0.0
    assert 0.0 <= after["auroc"] <= 1.0


def test_tensorboard_holds_losses_temperatures_scores_and_pictures(tmp_path):
    trainer = tiny_trainer(meta={"every": 1})
    report_on(tmp_path, trainer, interval=1, scalar_interval=1)
    trainer.run()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0}).Reload()
    scalars, images = set(events.Tags()["scalars"]), set(events.Tags()["images"])
    assert {
        "train/loss",
        "train/loss_source",
        "train/loss_mix",
        "train/loss_complement",
        "train/temperature_mean",
        "train/temperature_min",
        "train/temperature_max",
        "train/temperature_at_bounds",
        "train/quality",
        "train/meta_gradient_norm",
        "train/meta_outer_loss",
        "train/learning_rate_0",
        "target_val/dice",
        "target_val/ece",
        "target_val_dice/one",
    } <= scalars
    assert {
        "target_val_reliability/all",
        "target_val_reliability/foreground",
        "target_val_reliability/dataset_histogram",
        "target_val_reliability_by_class/two",
        "target_val/case_0",
        "target_val/case_2",
    } <= images
    assert [event.step for event in events.Scalars("target_val/dice")] == [3, 6, 9]
    assert len(events.Scalars("train/loss")) == 9


@pytest.mark.usefixtures("no_figures")
def test_where_no_class_is_background_reports_do_not_say_it_twice(tmp_path, capsys, monkeypatch):
    images = []
    monkeypatch.setattr(SummaryWriter, "add_figure", lambda _, tag, *__, **___: images.append(tag))
    trainer = tiny_trainer()
    report = report_on(tmp_path, trainer, evaluated={"background": None}, groups=["fog", "night", "fog"])
    trainer.run()
    report.evaluation.run()
    assert "foreground" not in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    tags = {*events.Tags()["scalars"], *images}
    assert {"target_val/ece", "target_val_by_group/fog/ece", "target_val_reliability/all"} <= tags
    assert {"target_val_reliability/boundary", "target_val_reliability/dataset_histogram"} <= tags
    assert not [tag for tag in tags if "foreground" in tag]
    # The file has the same scores for every task.
    after = json.loads((tmp_path / "metrics.json").read_text())["after"]
    assert after["foreground_ece"] == after["ece"]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.usefixtures("no_figures")
def test_groups_subsets_and_regions_are_in_every_report(tmp_path, capsys, dims):
    trainer, groups = tiny_trainer(dims), ["fog", "night", "fog"]
    parts = {"class_subsets": {"one alone": ["one"]}, "regions": {"either": ["one", "two"]}}
    report_on(tmp_path, trainer, dims, groups=groups, evaluated=parts)
    trainer.run()
    after = json.loads((tmp_path / "metrics.json").read_text())["after"]
    assert {name: group["cases"] for name, group in after["per_group"].items()} == {"fog": 2, "night": 1}
    assert after["class_subsets"]["one alone"]["miou"] == after["per_class"]["one"]["iou"]
    with open(tmp_path / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == ["fog", "night", "fog"]
    # A group of one case scores as that case.
    assert float(rows[1]["ece"]) == pytest.approx(after["per_group"]["night"]["ece"], rel=1e-4)
    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    for tag, value in (
        ("target_val_by_group/fog/dice", after["per_group"]["fog"]["dice"]),
        ("target_val_by_group/night/ece", after["per_group"]["night"]["ece"]),
        ("target_val_subset/one alone/miou", after["class_subsets"]["one alone"]["miou"]),
        ("target_val_region/either/dice", after["regions"]["either"]["dice"]),
    ):
        assert events.Scalars(tag)[-1].value == pytest.approx(value, rel=1e-6)
    assert load_sums(tmp_path / "statistics.pt").summarise()["regions"] == after["regions"]
    assert f"{after['regions']['either']['dice']:.4f}" in capsys.readouterr().out.partition("region: either")[2]


def test_other_classes_than_are_evaluated_are_refused_before_training(tmp_path):
    trainer = tiny_trainer()
    with pytest.raises(
        InputError, match=r"num_classes: the trainer has 3, but evaluator's class_names has 4 \(background"
    ):
        report_on(tmp_path, trainer, names=[*NAMES, "three"])
    with pytest.raises(InputError, match=r"num_classes: the trainer has 3, but class_names has 2 \(a, b\)"):
        AdaptationReport(None, tmp_path, tmp_path / "m.pt", task={"class_names": ["a", "b"]}).attach(trainer)


@pytest.mark.usefixtures("no_figures")
def test_deploys_the_student_if_asked(tmp_path):
    trainer = tiny_trainer()
    report_on(tmp_path, trainer, deploy="student")
    trainer.run()
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(torch.equal(state[name], value) for name, value in trainer.network.state_dict().items())
    with pytest.raises(InputError, match="deploy: found 'both'"):
        report_on(tmp_path, trainer, deploy="both")


@pytest.mark.usefixtures("no_figures")
def test_measuring_changes_nothing_about_training(tmp_path):
    measured, alone = tiny_trainer(), tiny_trainer()
    report_on(tmp_path, measured, interval=1)
    measured.run()
    alone.run()
    assert torch.equal(weights(measured), weights(alone))


@pytest.mark.usefixtures("no_figures")
def test_without_warm_up_before_is_the_start(tmp_path):
    trainer = tiny_trainer(warmup_epochs=0)
    report = report_on(tmp_path, trainer)
    measured = []
    original = report.evaluation.measure
    report.evaluation.measure = lambda *a: (measured.append(trainer.state.iteration), original(*a))[1]
    trainer.run()
    assert measured == [0, 9]


def test_without_evaluation_cases_scores_are_null(tmp_path, capsys):
    trainer = tiny_trainer()
    AdaptationReport(None, tmp_path, tmp_path / "model.pt").attach(trainer)
    trainer.run()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["before"] is None
    assert metrics["after"] is None
    assert (tmp_path / "model.pt").is_file()
    assert "nothing was measured" in capsys.readouterr().out


@pytest.mark.usefixtures("no_figures")
def test_a_resumed_run_reports_what_the_whole_run_reports(tmp_path):
    def run(folder, crash_at=None, resume=False):
        trainer = tiny_trainer(max_epochs=4)
        report = report_on(folder, trainer)
        ResumableCheckpoint(folder / "checkpoints", extra={"report": report}, resume=resume).attach(trainer)
        if crash_at:

            def crash(engine):
                if engine.state.epoch == crash_at:
                    raise ZeroDivisionError

            trainer.add_event_handler(Events.EPOCH_STARTED, crash)
        try:
            trainer.run()
        except ZeroDivisionError:
            return None
        return json.loads((folder / "metrics.json").read_text())

    whole = run(tmp_path / "whole")
    assert run(tmp_path / "parts", crash_at=3) is None
    assert not (tmp_path / "parts" / "metrics.json").exists()
    resumed = run(tmp_path / "parts", resume=True)
    for moment in ("before", "after"):
        assert resumed[moment] == whole[moment]


@pytest.mark.parametrize(
    "wrong", [{"before": "text"}, {"before": {}}, {"tables": {"before": {"lower": "x"}}}, {"seconds": math.nan}]
)
def test_a_state_that_no_report_saved_is_refused(tmp_path, wrong):
    report = report_on(tmp_path, tiny_trainer())
    with pytest.raises(InputError, match=r"^report"):
        report.load_state_dict({"before": None, "tables": {}, "seconds": 1.0, **wrong})
    assert report.tables == {}


def test_progress_counts_every_iteration_once(capsys):
    trainer = tiny_trainer()
    progress = Progress(update_every=1)
    progress.attach(trainer)
    bars = []
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: bars.append(progress.bar))
    trainer.run()
    assert bars[0].n == bars[0].total == 9
    assert progress.bar is None
    printed = capsys.readouterr().err
    assert "warm-up" in printed
    assert "adapting" in printed
    assert "9/9" in printed
    assert "T=" in printed


def test_shown_numbers():
    assert shown({"loss": 1.23456, "temperature_mean": 1.0, "loss_mix": 3.0}) == {"loss": "1.235", "T": "1.000"}
    assert shown({"loss": math.nan}) == {"loss": "nan"}


@pytest.mark.usefixtures("no_figures")
def test_same_seed_same_metrics_to_the_last_bit(tmp_path):
    texts = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        trainer = tiny_trainer(meta={"every": 1})
        report_on(folder, trainer)
        trainer.run()
        metrics = json.loads((folder / "metrics.json").read_text())
        texts.append(json.dumps({k: v for k, v in metrics.items() if k not in ("seconds", "peak_memory_mib")}))
        texts.append((folder / "cases.csv").read_text())
    assert texts[:2] == texts[2:]


@pytest.mark.usefixtures("no_figures")
def test_an_interruption_where_the_warm_up_ends_loses_no_measurement(tmp_path):
    for folder, at in ((tmp_path / "whole", None), (tmp_path / "parts", 3), (tmp_path / "parts", None)):
        trainer = tiny_trainer()
        report = report_on(folder, trainer)
        ResumableCheckpoint(folder / "checkpoints", extra={"report": report}, resume="auto").attach(trainer)
        if at is not None:
            trainer.add_event_handler(Events.ITERATION_STARTED(once=at), lambda _: os.kill(os.getpid(), signal.SIGTERM))
        trainer.run()
        assert trainer.state.iteration == (at or 9)
    whole, parts = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "parts"))
    assert parts["before"] == whole["before"] is not None
    assert parts["after"] == whole["after"]
