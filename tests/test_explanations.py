# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Which errors are told in a line, and which are shown as they are."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement

from dacal_med import __version__, explanations
from dacal_med.deploy.export.wheel import own_wheel
from dacal_med.io.errors import InputError
from tests.conftest import ROOT

MISSING = "found no package matplotlib, wanted pip install 'dacal-med[train]'"


def wrapped(error):
    try:
        try:
            raise error
        except type(error) as cause:
            raise RuntimeError("Failed to evaluate") from cause
    except RuntimeError as outer:
        return outer


def test_plain_message_for_input_errors_and_traceback_for_others(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    monkeypatch.delenv("DACAL_MED_TRACEBACK", raising=False)
    explanations.show_input_errors_plainly()
    error = wrapped(InputError("datalist.json: not found"))
    sys.excepthook(type(error), error, error.__traceback__)
    assert capsys.readouterr().err == "\ndacal_med: datalist.json: not found\n"
    other = wrapped(ValueError("a bug"))
    sys.excepthook(type(other), other, other.__traceback__)
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("DACAL_MED_TRACEBACK", "1")
    sys.excepthook(type(error), error, error.__traceback__)
    assert "Traceback" in capsys.readouterr().err


def test_finds_the_input_error_in_a_chain():
    error = InputError("x")
    assert explanations.input_error_in(wrapped(error)) is error
    assert explanations.input_error_in(wrapped(ValueError("x"))) is None
    assert explanations.input_error_in(None) is None


def test_a_missing_extra_is_named_in_one_line(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError('none here', name='matplotlib')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    train = "bundles/dacal_em/configs/train.json"
    for words in (["dacal_med", "report"], ["monai.bundle", "run", "--config_file", train]):
        line = [sys.executable, "-m", *words]
        done = subprocess.run(line, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
        last = done.stderr.strip().splitlines()[-1]
        assert (done.returncode > 0, last) == (True, "dacal_med: " + MISSING), done.stderr
        assert "Traceback" not in done.stderr


def test_the_packages_of_the_extra_are_known():
    with zipfile.ZipFile(io.BytesIO(own_wheel().content)) as archive:
        metadata = archive.read(f"dacal_med-{__version__}.dist-info/METADATA").decode()
    names = {Requirement(line).name for line in re.findall(r'Requires-Dist: (.*); extra == "train"', metadata)}
    modules = {module for module, owners in packages_distributions().items() if names & set(owners)}
    assert modules - {"pylab", "mpl_toolkits"} == set(explanations.TRAINING)
    assert explanations.missing_package(ModuleNotFoundError("x", name="no_such_module")) is None
