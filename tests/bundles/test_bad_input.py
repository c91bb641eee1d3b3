# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong with the input is said in one message before training starts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from tests.bundles.builders import QUICK, command
from tests.conftest import ROOT
from tests.handlers.test_claim import held_elsewhere
from tests.processes import run, run_here


@pytest.fixture
def dataset(phantom, tmp_path):
    """A copy of the phantom that may be broken."""
    return Path(shutil.copytree(phantom, tmp_path / "dataset"))


@pytest.fixture
def refusal(tmp_path):
    """Start the training, which must be refused; return the message."""

    def start(dataset_dir, names=("train",), **overrides):
        out = tmp_path / "out"
        options = {**QUICK, "dataset_dir": dataset_dir, "output_dir": out, "model_file": out / "model.pt", **overrides}
        done = run_here(command(*names, **options))
        _, told, message = done.stderr.partition("\ndacal_med: ")
        assert done.returncode == 1 and told and "Traceback" not in done.stderr, done.stderr
        assert not list(out.glob("checkpoints/*.pt"))
        assert not (out / "model.pt").exists()
        return message

    return start


def edit(dataset, change):
    path = dataset / "datalist.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def rewrite(path, change, affine=None, dtype=None):
    image = nib.load(path)
    array = change(np.asarray(image.dataobj).astype(dtype or np.asarray(image.dataobj).dtype))
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def test_missing_datalist(refusal, dataset):
    (dataset / "datalist.json").unlink()
    assert f"{dataset / 'datalist.json'}: not found" in refusal(dataset)


def test_malformed_datalist(refusal, dataset):
    (dataset / "datalist.json").write_text('{"labels": ')
    assert "datalist.json: not valid JSON at line 1" in refusal(dataset)


def test_missing_image(refusal, dataset):
    (dataset / "ct" / "images" / "ct_001.nii.gz").unlink()
    assert "ct_001.nii.gz" in refusal(dataset)


def test_truncated_image(refusal, dataset):
    path = dataset / "mr" / "images" / "mr_001.nii.gz"
    path.write_bytes(path.read_bytes()[:800])
    assert "mr_001.nii.gz" in refusal(dataset)


def test_unreadable_image(refusal, dataset):
    (dataset / "mr" / "images" / "mr_000.nii.gz").write_text("not an image")
    assert "mr_000.nii.gz" in refusal(dataset)


def test_label_of_another_shape(refusal, dataset):
    rewrite(dataset / "ct" / "labels" / "ct_000.nii.gz", lambda a: a[:-1])
    message = refusal(dataset)
    assert "ct_000.nii.gz" in message
    assert "(23, 20, 16)" in message
    assert "(24, 20, 16)" in message


def test_label_of_another_affine(refusal, dataset):
    path = dataset / "ct" / "labels" / "ct_000.nii.gz"
    affine = nib.load(path).affine.copy()
    affine[0, 3] += 40.0
    rewrite(path, lambda a: a, affine=affine)
    assert "ct_000.nii.gz" in refusal(dataset)


def test_label_value_outside_labels(refusal, dataset):
    def change(array):
        array[0, 0, 0] = 9
        return array

    rewrite(dataset / "ct" / "labels" / "ct_002.nii.gz", change)
    message = refusal(dataset)
    assert "ct_002.nii.gz" in message
    assert "9" in message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_no_numbers(refusal, dataset, value):
    def change(array):
        array[1, 2, 3] = value
        return array

    rewrite(dataset / "mr" / "images" / "mr_002.nii.gz", change, dtype=np.float32)
    assert "mr_002.nii.gz" in refusal(dataset)


def test_no_target_images(refusal, dataset):
    edit(dataset, lambda c: c.update(target_train=[]))
    assert "'target_train' is empty" in refusal(dataset)


def test_no_labelled_source(refusal, dataset):
    edit(dataset, lambda c: c.update(source=[]))
    assert "'source' is empty" in refusal(dataset)


def test_source_without_labels(refusal, dataset):
    edit(dataset, lambda c: c["source"][0].pop("label"))
    assert "source" in refusal(dataset)


def test_wrong_number_of_channels(refusal, dataset):
    message = refusal(dataset, in_channels=3)
    assert "found 1 channel(s); wanted 3" in message


def test_two_dimensional_data_in_a_bundle_for_volumes(refusal, shared_data):
    message = refusal(shared_data / "camvid_day2dusk")
    assert "3" in message
    assert "camvid" in message


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"host#name": "dcas"},
            "host: found 'dcas', wanted one of ['dacs', 'daformer', 'mean_teacher', 'mic', 'source_only']",
        ),
        ({"labeller#name": "sotf"}, "labeller: found 'sotf', wanted one of ['hard', 'soft', 'fixed', 'learned']"),
        ({"max_epoch": 3}, "override --max_epoch: found no key 'max_epoch'; did you mean 'max_epochs'"),
        ({"meta#evry": 3}, "override --meta#evry: found no key 'evry' in 'meta'; did you mean 'every'"),
        ({"warmup_epochs": 9}, "warmup_epochs: found 9, wanted 0 to max_epochs=2"),
        ({"meta_objective#source": "validation"}, "meta_objective#source: found 'validation'"),
        ({"held_out_share": 0.0}, "held_out_share"),
        ({"host#name": "mic", "host#block_size": [4, 4]}, "host#block_size: found 2 numbers, wanted 3"),
        ({"num_classes": 9}, "num_classes: the trainer has 9, but class_names has"),
        ({"network_def#out_channels": 9}, "it has 9 classes and the data has"),
        ({"validate#evaluator#class_subsets": {"some": ["livre"]}}, "found no class 'livre'; did you mean 'liver'?"),
        ({"regions": {"both": ["livre"]}}, "regions: 'both': found no class 'livre'; did you mean 'liver'?"),
        ({"regions": {"both": []}}, "regions: 'both': found [], wanted a name and a list of class names"),
    ],
)
def test_wrong_settings(refusal, phantom, overrides, message):
    assert message in refusal(phantom, **overrides)


def test_checkpoint_of_another_configuration(trained, refusal, phantom, tmp_path):
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    message = refusal(phantom, ckpt_dir=str(tmp_path / "checkpoints"), resume=True, **{"labeller#name": "soft"})
    assert "labeller: the checkpoint has" in message
    message = refusal(phantom, ckpt_dir=str(tmp_path / "nothing"), resume=True)
    assert "found no checkpoint" in message


def test_unwritable_output(refusal, phantom, tmp_path):
    (tmp_path / "file").write_text("in the way")
    message = refusal(phantom, output_dir=str(tmp_path / "file" / "eval"), model_file=str(tmp_path / "model.pt"))
    assert f"output folder {tmp_path / 'file' / 'eval'} cannot be written" in message


@pytest.mark.parametrize("names", [("train",), ("train", "evaluate")])
def test_a_folder_in_which_another_run_lives(refusal, phantom, tmp_path, names):
    with held_elsewhere(tmp_path / "out"):
        assert f"output_dir: another run is writing to {tmp_path / 'out'} (process " in refusal(phantom, names)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_full_disk(refusal, phantom, monkeypatch):
    class Full:
        f_bavail, f_frsize = 10, 4096

    monkeypatch.setattr("os.statvfs", lambda path: Full)
    assert "found 0 MiB free on its disk, wanted" in refusal(phantom)


def test_weights_of_another_network(refusal, trained, phantom, tmp_path):
    model = str(trained / "model.pt")
    message = refusal(phantom, ("train", "evaluate"), model_file=model, **{"network_def#channels": [8, 16]})
    assert "holds another network" in message
    message = refusal(phantom, ("train", "evaluate"), model_file=str(tmp_path / "absent.pt"))
    assert "no weights at" in message


def test_the_user_reads_one_message_and_no_traceback(phantom, tmp_path, subprocess_environment, monkeypatch):
    line = command("train", **QUICK, dataset_dir=phantom, output_dir=tmp_path, **{"labeller#name": "sotf"})
    done = run(line, ROOT, subprocess_environment)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stderr.rstrip().splitlines()[-1].startswith("dacal_med: labeller: found 'sotf'")
    monkeypatch.setenv("DACAL_MED_TRACEBACK", "1")
    assert "Traceback" in run_here(line).stderr
