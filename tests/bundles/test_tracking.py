# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""``--tracking mlflow``: MONAI's own handlers log losses and scores of training, evaluation and inference."""

from __future__ import annotations

import json
from types import SimpleNamespace

import monai.bundle
import pytest

from dacal_med.bundle import check_overrides
from dacal_med.io.errors import InputError
from tests.bundles.builders import BUNDLES, command, configs

BUNDLE = BUNDLES["dacal_em"]


class FakeStore:
    """What MONAI's handler uses of mlflow, in memory: one run after the other, by folder."""

    def __init__(self) -> None:
        self.runs: dict[str, list[SimpleNamespace]] = {}
        self.entities = SimpleNamespace(
            RunStatus=SimpleNamespace(to_string=str, FINISHED="FINISHED"),
            LifecycleStage=SimpleNamespace(ACTIVE="active"),
            Param=lambda key, value: (key, value),
            Metric=lambda key, value, timestamp, step: (key, value, step),
        )

    def MlflowClient(self, tracking_uri):
        runs = self.runs.setdefault(tracking_uri, [])
        found = SimpleNamespace(lifecycle_stage="active", experiment_id="0")

        def create_run(experiment_id, run_name):
            info = SimpleNamespace(run_id=str(len(runs)), run_name=run_name, status="RUNNING")
            runs.append(SimpleNamespace(info=info, data=SimpleNamespace(params={}), metrics={}))
            return runs[-1]

        def log_batch(run_id, metrics, params, tags):
            assert runs[int(run_id)].info.status == "RUNNING"
            runs[int(run_id)].data.params.update(params)
            for key, value, step in metrics:
                runs[int(run_id)].metrics.setdefault(key, []).append((step, float(value)))

        return SimpleNamespace(
            tracking_uri=tracking_uri,
            get_experiment_by_name=lambda name: found,
            search_runs=lambda experiment_id: list(runs),
            get_run=lambda run_id: runs[int(run_id)],
            create_run=create_run,
            log_batch=log_batch,
            log_artifact=lambda run_id, path: None,
            set_terminated=lambda run_id, status: setattr(runs[int(run_id)].info, "status", status),
        )

    def logged(self, folder):
        (run,) = self.runs[f"sqlite:///{folder}/mlruns.db"]
        return run.info.status, run.metrics


class RealStore:
    """mlflow itself, with a database in the output folder."""

    def __init__(self) -> None:
        self.mlflow = pytest.importorskip("mlflow")

    def logged(self, folder):
        client = self.mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder}/mlruns.db")
        (run,) = client.search_runs([client.get_experiment_by_name("monai_experiment").experiment_id])
        histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        return run.info.status, {key: [(m.step, m.value) for m in found] for key, found in histories.items()}


@pytest.fixture(params=["fake", "real"])
def store(request, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if request.param == "real":
        return RealStore()
    fake = FakeStore()
    monkeypatch.setattr("monai.handlers.mlflow_handler.mlflow", fake)
    return fake


def test_losses_and_scores_are_logged(store, phantom_of, tmp_path):
    model, data = str(tmp_path / "model.pt"), phantom_of(BUNDLE)
    common = {**BUNDLE.quick, "dataset_dir": data, "model_file": model, "num_workers": 0, "tracking": "mlflow"}
    out, evaluation, inference = (tmp_path / name for name in ("out", "evaluation", "inference"))

    monai.bundle.run(config_file=configs("train", bundle=BUNDLE), output_dir=str(out), **common)
    status, metrics = store.logged(out)
    after = json.loads((out / "metrics.json").read_text())
    assert status == "FINISHED"
    assert [step for step, _ in metrics["train_loss"]] == [1, 2, 3, 4]
    assert {"loss_source", "loss_mix", "temperature_mean", "quality", "lr_group_0"} <= set(metrics)
    assert [step for step, _ in metrics["loss"]] == [1, 2]  # of the last iteration of each epoch
    for name in ("dice", "ece"):
        wanted = [after[moment][name] for moment in ("before", "after")]
        assert [value for _, value in metrics[name]] == pytest.approx(wanted)
        assert metrics[f"target_val_{name}"][0] == (1, pytest.approx(wanted[0]))

    both = configs("train", "evaluate", bundle=BUNDLE)
    monai.bundle.run(config_file=both, output_dir=str(evaluation), **common)
    status, metrics = store.logged(evaluation)
    assert status == "FINISHED"
    assert metrics["ece"] == [(1, pytest.approx(after["after"]["ece"]))]

    settings = {**BUNDLE.tiny, "model_file": model, "tracking": "mlflow", "file_patterns": ["*.png"]}
    images = {"dataset_dir": f"{data}/{BUNDLE.target}/images", "output_dir": str(inference), "output_ext": ".png"}
    monai.bundle.run(config_file=configs("inference", bundle=BUNDLE), workflow_type="infer", **settings, **images)
    status, metrics = store.logged(inference)
    assert status == "FINISHED"
    ((step, confidence),) = metrics["mean_confidence"]
    assert step == 1 and 1 / len(BUNDLE.classes) <= confidence <= 1


def test_settings_of_the_tracking_are_known_where_it_is_asked_for(tmp_path):
    line = command("train", bundle=BUNDLE, run_name="first", tracking_uri="sqlite:////tmp/x.db")[3:]
    with pytest.raises(InputError, match="found no key 'run_name'"):
        check_overrides(line)
    check_overrides([*line, "--tracking", "mlflow"])
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"handlers_id": {}, "configs": {"run_name": None, "tracking_uri": ""}}))
    check_overrides([*line, "--tracking", str(own)])
