# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Malformed checkpoints, weights and sums; damaged and foreign configurations of an export."""

from __future__ import annotations

import copy
import io
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.deploy.runtime import checksums
from dacal_med.deploy.runtime.model import Model
from dacal_med.handlers import ResumableCheckpoint
from dacal_med.handlers.sums import load_sums, save_sums
from dacal_med.handlers.weights import load_weights
from dacal_med.io.errors import InputError
from tests.deploy.runtime.builders import export_folder, inference
from tests.engines.builders import tiny_network, tiny_trainer, weights
from tests.fuzz.images import AFFINE, good_array
from tests.fuzz.outcomes import attempt, in_time
from tests.fuzz.test_datalists import STRANGE, places, replaced

Make = Callable[[dict[str, Any]], Any]
KINDS = ("checkpoint", "weights", "sums")


def stored(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def without_entry(data: bytes, name: str) -> bytes:
    """The archive without the entries of that name."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stream, "w") as new:
        for item in old.namelist():
            if not item.endswith(name):
                new.writestr(item, old.read(item))
    return stream.getvalue()


def damaged(data: bytes) -> dict[str, bytes]:
    cuts = (0, 1, 4, 30, len(data) // 4, len(data) // 2, len(data) - 30, len(data) - 1)
    files = {f"cut after {cut} bytes": data[:cut] for cut in cuts}
    for share in (0, 10, 30, 50, 70, 90):
        changed = bytearray(data)
        changed[len(data) * share // 100] ^= 0x55
        files[f"a byte changed at {share} %"] = bytes(changed)
    files["no pickle in it"] = without_entry(data, "data.pkl")
    files["a tensor missing"] = without_entry(data, "data/0")
    files["an empty archive"] = without_entry(data, "")
    files["zeros"] = bytes(len(data))
    files["text"] = b"no weights\n" * 50
    files["bytes behind it"] = data + b"more"
    return files


def foreign(good: dict[str, Any]) -> dict[str, bytes]:
    """Whole files of something else."""
    things = {"a tensor": torch.zeros(3), "nothing": None, "a list": [good], "empty": {}, "a number": 3}
    files = {f"holds {what}": stored(thing) for what, thing in things.items()}
    for key in good:
        files[f"without {key}"] = stored({k: v for k, v in good.items() if k != key})
        for what, thing in {**things, "text": "text", "other": {"x": torch.zeros(2)}}.items():
            files[f"{key} is {what}"] = stored({**good, key: thing})
    files["old format"] = stored(good, _use_new_zipfile_serialization=False)
    files["old format, cut"] = files["old format"][:-40]
    return files


def changed(good: dict[str, Any], *place: Any, value: Any) -> dict[str, Any]:
    """A checkpoint with another value at a place; ``KeyError`` as value takes away what is there."""
    content = copy.deepcopy(good)
    node = content
    for key in place[:-1]:
        node = node[key]
    if value is KeyError:
        del node[place[-1]]
    else:
        node[place[-1]] = value(node[place[-1]]) if callable(value) else value
    return content


def nested(good: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Whole checkpoints with something inside that no run saves."""
    strange = (-1, math.nan, 2.5, "text", None, True, [], {"x": 1}, torch.zeros(2), 10**9)
    counters = [key for key in good["trainer"] if key.startswith(("skipped", "meta_skipped", "overflows"))]
    cases: list[tuple[tuple[Any, ...], Any]] = []
    for key in good["trainer"]:
        cases += [(("trainer", key), value) for value in (*strange[: -1 if key in counters else None], KeyError)]
    cases += [(("teacher", "updates"), value) for value in (*strange[:-1], KeyError)]
    bad = (math.nan, math.inf, "text", None, True, [], {"x": 1}, torch.zeros(2), KeyError)
    for part in ("optimizer", "meta_optimizer"):
        for option in ("lr", "betas", "eps", "weight_decay"):
            cases += [((part, "param_groups", 0, option), value) for value in bad]
        cases += [((part, "param_groups", 0, "lr"), -1.0), ((part, "param_groups", 0, "betas"), 3)]
        cases += [((part, "param_groups", 0, "betas"), (1.5, 0.9)), ((part, "param_groups", 0, "params"), [0])]
        cases += [((part, "param_groups"), value) for value in ([], {}, None)]
        cases += [((part, "state", 0), value) for value in ([], None, {"step": 1.0})]
        cases += [((part, "state", 999), {})]
        for moment in ("exp_avg", "exp_avg_sq"):
            values = (lambda t: t[:1], lambda t: t * math.nan, lambda t: t - math.inf, None, 1.0, "text", KeyError)
            cases += [((part, "state", 0, moment), value) for value in values]
        cases += [((part, "state", 0, "exp_avg_sq"), lambda t: t - 1.0)]
        cases += [((part, "state", 0, "step"), value) for value in (-5.0, math.nan, "text", torch.zeros(2), KeyError)]
    weight = next(iter(good["network"]))
    for place in (("network", weight), ("teacher", "network", weight), ("labeller", "log_centre")):
        values = (lambda t: t * math.nan, lambda t: t + math.inf, lambda t: t.long(), lambda t: torch.zeros(9, 9))
        cases += [(place, value) for value in (*values, 1.0, "text", None, KeyError)]
    return {f"{number}: {place}": changed(good, *place, value=value) for number, (place, value) in enumerate(cases)}


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What whole files hold."""
    folder = tmp_path_factory.mktemp("good")
    tiny_trainer(handlers=(ResumableCheckpoint(folder),), max_epochs=2).run()
    statistics = SegmentationStatistics(2)
    statistics.update(torch.full((1, 2, 4, 4), 0.5), torch.zeros(1, 1, 4, 4))
    save_sums(folder / "sums.pt", [statistics], ["background", "organ"], ["a"], {"some": ["organ"]})
    newest = max(folder.glob("checkpoint_iteration=*.pt"), key=lambda path: int(path.stem.split("=")[1]))
    return {
        "checkpoint": torch.load(newest, weights_only=True),
        "weights": dict(tiny_network(2).state_dict()),
        "sums": torch.load(folder / "sums.pt", weights_only=True),
    }


def resumed(path: Path) -> Any:
    trainer = tiny_trainer(handlers=(ResumableCheckpoint(path.parent / "out", resume=str(path)),), max_epochs=2)
    trainer.run()
    return trainer.state.iteration


LOADERS: dict[str, Callable[[Path], Any]] = {
    "checkpoint": resumed,
    "weights": lambda path: load_weights(tiny_network(2), path),
    "sums": lambda path: load_sums(path).summarise(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("group", ["damaged", "foreign"])
def test_a_file_is_refused_or_what_it_should_be(kind, group, good, tmp_path):
    files = damaged(stored(good[kind])) if group == "damaged" else foreign(good[kind])
    wrong, refused = {}, 0
    for what, data in files.items():
        path = tmp_path / "file.pt"
        path.write_bytes(data)
        try:
            refused += attempt(lambda path=path: (LOADERS[kind](path),), "file.pt") is None
        except Exception as error:
            wrong[what] = f"{type(error).__name__}: {str(error)[:200]}"
        assert {path.name for path in (tmp_path / "out").glob(".*")} <= {".lock"}, what
    assert not wrong
    assert refused > len(files) // 2


def test_a_checkpoint_with_anything_in_any_place_inside_is_refused(good, tmp_path):
    path = tmp_path / "file.pt"
    start = weights(tiny_trainer(max_epochs=2))
    wrong = []
    for what, content in nested(good["checkpoint"]).items():
        path.write_bytes(stored(content))
        trainer = tiny_trainer(handlers=(ResumableCheckpoint(tmp_path / "out", resume=str(path)),), max_epochs=2)
        try:
            with pytest.raises(InputError, match=r"cannot resume from .*file.pt: \w+.*: found .*, wanted "):
                trainer.run()
        except BaseException as error:
            wrong.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
        assert torch.equal(weights(trainer), start), what
    assert not wrong


def test_the_newest_whole_checkpoint_is_taken(good, tmp_path):
    whole = stored(good["checkpoint"])
    (tmp_path / "checkpoint_iteration=6.pt").write_bytes(whole)
    (tmp_path / "checkpoint_iteration=9.pt").write_bytes(whole[:-100])
    (tmp_path / "checkpoint_iteration=best.pt").write_bytes(whole)
    (tmp_path / "checkpoint_iteration=.pt").write_bytes(b"")
    trainer = tiny_trainer(handlers=(ResumableCheckpoint(tmp_path, resume=True),), max_epochs=2)
    with in_time():
        trainer.run()
    assert trainer.state.iteration == 6


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    nib.save(nib.Nifti1Image(good_array(), AFFINE), folder / "image.nii")
    return export_folder(folder / "export").parent


@pytest.mark.parametrize("what", STRANGE)
def test_a_sites_configuration_with_anything_in_any_place(what, site, tmp_path):
    export = Path(shutil.copytree(site / "export", tmp_path / "export"))
    network = inference(export, site / "image.nii", tmp_path / "out").network
    path, weights = export / "configs" / "metadata.json", export / "models" / "model.pt"
    metadata = {**json.loads(path.read_text()), "segment_codes": {}}
    read = ["name", "version", "segment_codes", "network_data_format"]
    for place in (place for place in places(metadata) if place and place[0] in read):
        path.write_text(json.dumps(replaced(metadata, place, STRANGE[what])))
        model = attempt(lambda: Model.load(export, weights, network, torch.device("cpu")), "metadata.json", "weights")
        if model is not None:
            assert model.num_classes == 2
            assert model.modality is None or model.modality in ("CT", "MR", "PT", "US")
            assert len(model.trust(1.0, "ml").classes) in (1, 2)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": 1}', "null", '{"schema": "x", "intensity": 3}'])
def test_a_reference_that_is_none(content, site, tmp_path):
    export = Path(shutil.copytree(site / "export", tmp_path / "export"))
    (export / "configs" / "trust.json").write_text(content)
    checksums.write(export)
    with pytest.raises(InputError, match=r"trust.json"):
        inference(export, site / "image.nii", tmp_path / "out").run()


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xfe", b"0" * 64 + b"  ../x\n", b"0" * 64 + b"  absent\n"])
def test_sums_that_are_none(content, site, tmp_path):
    export = Path(shutil.copytree(site / "export", tmp_path / "export"))
    (export / "SHA256SUMS").write_bytes(content)
    with pytest.raises(InputError):
        inference(export, site / "image.nii", tmp_path / "out").run()
    assert not (tmp_path / "out").exists()


def test_weights_without_finite_numbers_do_not_become_a_result(site, tmp_path):
    export = Path(shutil.copytree(site / "export", tmp_path / "export"))
    weights = export / "models" / "model.pt"
    state = torch.load(weights, weights_only=True)
    torch.save({name: torch.full_like(value, np.nan) for name, value in state.items()}, weights)
    checksums.write(export)
    (case,) = inference(export, site / "image.nii", tmp_path / "out").run()["cases"]
    assert case["status"] == "failed"
    assert "finite" in case["error"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["case_0001.json", "summary.json"]
