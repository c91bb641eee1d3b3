# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Which errors are told in a line, and which are shown as they are."""

from __future__ import annotations

import sys

from dacal_med import explanations
from dacal_med.io.errors import InputError


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
