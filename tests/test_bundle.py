# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Finding a bundle, checking overrides, showing errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from dacal_med import bundle
from dacal_med.io.errors import InputError
from tests.conftest import ROOT

TRAIN = str(ROOT / "bundles" / "dacal_ct2mr" / "configs" / "train.json")
HARD = str(ROOT / "bundles" / "dacal_ct2mr" / "configs" / "hard_labels.json")


@pytest.fixture(autouse=True)
def sigterm():
    """Tests start with the system's handling of SIGTERM, and leave what they found."""
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    "words",
    [
        ["--config_file", TRAIN],
        [f"--config_file={TRAIN}"],
        ["--config_file", f"['{TRAIN}', '{HARD}']"],
        ["--config_file", f'["{TRAIN}","{HARD}"]'],
    ],
)
def test_finds_the_bundle_of_the_configuration(monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["monai.bundle", "run", *words])
    found = bundle.find_root("dacal_ct2mr")
    assert os.path.realpath(found) == str(ROOT / "bundles" / "dacal_ct2mr")


@pytest.mark.parametrize("folder", [".", "bundles/dacal_ct2mr"])
def test_finds_the_bundle_from_the_working_folder(monkeypatch, folder):
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.setattr(sys, "argv", ["python"])
    assert os.path.realpath(bundle.find_root("dacal_ct2mr")) == str(ROOT / "bundles" / "dacal_ct2mr")


def test_says_where_it_looked(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["python"])
    with pytest.raises(InputError, match=r"bundle_root: found no configs/metadata.json in .*give --bundle_root"):
        bundle.find_root("dacal_ct2mr")


@pytest.mark.parametrize(
    "option",
    [
        "max_epochs",
        "train#trainer#teacher_decay",
        "train::trainer::teacher_decay",
        "train#handlers#2#interval",  # a parameter of the target that the file does not give
        "network_def#dropout",
        "meta#prior_temperature",  # through **options
        "logging_file",
        "geometry#0#axcodes",
    ],
)
def test_known_overrides_pass(option):
    bundle.check_overrides(["run", "--config_file", TRAIN, f"--{option}", "1"])
    bundle.check_overrides(["run", f"--config_file={TRAIN}", f"--{option}=1"])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("max_epoch", "found no key 'max_epoch'; did you mean 'max_epochs'"),
        ("train#trainer#techer_decay", "'techer_decay' in 'train#trainer'; did you mean 'teacher_decay'"),
        ("train#handlers#9#interval", "found no key '9' in 'train#handlers'"),
        ("network_def#chanels", "did you mean 'channels'"),
        ("Zzz", "known are"),
    ],
)
def test_misspelt_overrides_are_refused(option, message):
    with pytest.raises(InputError, match=message):
        bundle.check_overrides(["run", "--config_file", TRAIN, f"--{option}", "1"])


@pytest.mark.parametrize("words", [["--background", "None"], ["--background=None"]])
def test_an_override_of_none_is_refused_since_monai_drops_it(words):
    with pytest.raises(InputError, match=r"override --background: found None, .* wanted --background '\$None'"):
        bundle.check_overrides(["run", "--config_file", TRAIN, *words])
    bundle.check_overrides(["run", "--config_file", TRAIN, "--background", "$None"])


def test_overrides_of_an_arguments_file_are_checked(tmp_path):
    arguments = tmp_path / "arguments.json"
    arguments.write_text(f'{{"config_file": "{TRAIN}", "max_epoch": 3}}')
    with pytest.raises(InputError, match="max_epoch"):
        bundle.check_overrides(["run", "--args_file", str(arguments)])


def test_other_commands_are_left_alone():
    bundle.check_overrides(["-q", "--whatever", "1"])


def test_start_takes_the_threads_of_the_environment(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    try:
        bundle.start(["python"])
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_sigterm_before_training_ends_with_a_line_and_status_0(tmp_path, subprocess_environment):
    """As it comes while the data are checked, through ``monai.bundle run``."""
    config = tmp_path / "train.json"
    waits = ["$dacal_med.bundle.start()", "$print('checking', flush=True)", "$time.sleep(120)"]
    imports = ["$import time", "$import dacal_med"]
    config.write_text(json.dumps({"imports": imports, "initialize": waits, "run": ["$print('trained')"]}))
    line = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(config)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, cwd=ROOT, env=subprocess_environment, **pipes)
    assert any("checking" in said for said in process.stdout)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors.endswith("\ndacal_med: ended by SIGTERM outside training, nothing to save; start it again\n")
    assert "Traceback" not in errors
    assert "trained" not in output


def test_sigterm_that_someone_handles_is_left_to_them():
    theirs = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGTERM, theirs)
    bundle.end_well_at_sigterm()
    assert signal.getsignal(signal.SIGTERM) is theirs
