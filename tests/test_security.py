# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""No file that is loaded runs code (docs/security.md)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from dacal_med.deploy.runtime.model import _load as load_site_model
from dacal_med.engines.hosts import make_host
from dacal_med.handlers import ResumableCheckpoint
from dacal_med.handlers.sums import load_sums
from dacal_med.handlers.weights import load_weights
from dacal_med.io.errors import InputError
from tests.engines.builders import tiny_network, tiny_trainer

ROOT = Path(__file__).resolve().parents[1]


class Payload:
    """Touches a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def resume(path):
    trainer = tiny_trainer()
    ResumableCheckpoint(path.parent / "checkpoints", resume=str(path)).attach(trainer)
    trainer.run()


def resume_newest(path):
    (path.parent / "checkpoints").mkdir()
    path.rename(path.parent / "checkpoints" / "checkpoint_iteration=3.pt")
    trainer = tiny_trainer()
    ResumableCheckpoint(path.parent / "checkpoints", resume=True).attach(trainer)
    trainer.run()


def fork(path):
    trainer = tiny_trainer()
    ResumableCheckpoint(path.parent / "checkpoints", fork_from=str(path)).attach(trainer)
    trainer.run()


def frozen_encoder(path):
    make_host("daformer", frozen=nn.Conv2d(1, 1, 1), layer="model.0", thing_classes=[1], checkpoint=str(path))


LOADERS = {
    "checkpoint": resume,
    "newest checkpoint": resume_newest,
    "checkpoint of another run": fork,
    "weights": lambda path: load_weights(tiny_network(2), path),
    "statistics": load_sums,
    "pretrained encoder": frozen_encoder,
    "model at a site": lambda path: load_site_model(path, tiny_network(2)),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("loader", LOADERS)
def test_pickled_code_is_refused(loader, legacy, tmp_path):
    path, touched = tmp_path / "file.pt", tmp_path / "touched"
    torch.save({"network": Payload(touched)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match=r"not a readable|can be read|cannot be loaded"):
        LOADERS[loader](path)
    assert not touched.exists()
    # The payload works where it is let in.
    torch.load(
        tmp_path / ("checkpoints/checkpoint_iteration=3.pt" if loader.startswith("newest") else "file.pt"),
        weights_only=False,
    )
    assert touched.exists()


def files_with(pattern: str) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for folder in ("dacal_med", "scripts")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if re.search(pattern, path.read_text(encoding="utf-8"))
    ]


def test_every_torch_load_is_a_tested_one():
    """A third place that loads must come here."""
    found = files_with(r"\b(torch\.load|np\.load|numpy\.load|load_state_dict_from_url)\(")
    assert found == ["dacal_med/core/weights.py", "dacal_med/data/caching.py", "dacal_med/deploy/runtime/model.py"]


def test_torchscript_is_loaded_from_exports_alone():
    """It is code: the export checks what it has just written, the site what its checksums vouch for."""
    wanted = ["dacal_med/deploy/export/checking.py", "dacal_med/deploy/runtime/model.py", "scripts/check_ecosystem.py"]
    assert files_with(r"\bjit\.load\(") == wanted


def test_inference_configurations_run_nothing_but_monai():
    """But for the networks of street scenes, which MONAI does not have, and the reader and writer of all images."""
    for path in sorted((ROOT / "bundles").glob("*/configs/inference.json")):
        text = path.read_text(encoding="utf-8")
        targets = re.findall(r'"_target_": "([^"]+)"', text)
        assert targets
        foreign = [target for target in targets if "." in target and not target.startswith("monai.")]
        assert foreign in ([], ["dacal_med.networks.segmentation_network"]), path
        files = re.findall(r"[\"']dacal_med\.io\.(Reader|Writer)[\"']", text)
        assert files == ["Reader", "Writer", "Writer"]
        assert text.count("dacal_med") == len(foreign) + len(files), path
