# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The deployed weights on disk."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dacal_med.handlers import load_weights, save_weights
from dacal_med.io.errors import InputError


def test_round_trip_is_a_plain_state_dict(tmp_path):
    network, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(network, tmp_path / "models" / "model.pt")
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert set(state) == {"weight", "bias"}
    load_weights(other, tmp_path / "models" / "model.pt")
    assert torch.equal(other.weight, network.weight)


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(InputError, match="no weights at"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    (tmp_path / "model.pt").write_bytes(b"damaged")
    with pytest.raises(InputError, match="not a readable weights file"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    save_weights(nn.Linear(4, 2), tmp_path / "model.pt")
    with pytest.raises(InputError, match="holds another network"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "model.pt")
    with pytest.raises(InputError, match="holds another network"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_the_classes_of_weights_for_another_task_are_named(tmp_path):
    save_weights(nn.Linear(3, 4), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text('{"class_names": ["road", "sky", "car", "bus"]}')
    message = r"other classes.*says that it was trained for 4 classes \(road, sky, car, bus\): .*size mismatch"
    with pytest.raises(InputError, match=f"(?s){message}"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.json does not say for which classes \(KeyError\)"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_a_pickled_object_is_not_executed(tmp_path):
    torch.save(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(InputError, match="not a readable weights file"):
        load_weights(nn.Linear(3, 2), tmp_path / "model.pt")


def test_a_failed_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    network = nn.Linear(3, 2)
    save_weights(network, tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match=r"cannot write .*model.pt: No space left on device"):
        save_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]
