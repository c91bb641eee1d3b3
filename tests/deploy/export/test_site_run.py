# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What `export` writes is what the site's code runs, for every bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from tests.bundles.builders import Bundle
from tests.deploy.runtime.builders import inference, run_command


def test_an_export_segments_images_of_its_task(
    tmp_path: Path, bundle: Bundle, site_of: Callable[[str], Path], run_of: Callable[[str], Path]
):
    folder = site_of(bundle.name)
    data = run_of(bundle.name).parent / "data"
    entry = json.loads((data / "datalist.json").read_text())["target_val"][0]
    (case,) = inference(folder, data / entry["image"], tmp_path / "out").run()["cases"]
    assert case["status"] == "ok", case["error"]
    assert list(case["trust"]["classes"]) == [name for name in bundle.classes if name != "background"]
    assert case["trust"]["out_of_distribution"]["assessed"]
    assert case["model"]["name"] == json.loads((folder / "configs" / "metadata.json").read_text())["name"]
    for kind in ("segmentation", "confidence"):
        assert (tmp_path / "out" / case["outputs"][kind]).stat().st_size > 0


def test_a_site_runs_streets(tmp_path: Path, site_of: Callable[[str], Path], run_of: Callable[[str], Path]):
    """What it writes is what the network says, in the picture's size."""
    folder = site_of("dacal_gta2cityscapes")
    data = run_of("dacal_gta2cityscapes").parent / "data"
    entry = json.loads((data / "datalist.json").read_text())["target_val"][0]
    done = run_command(folder, tmp_path, dataset_dir=data / entry["image"], output_dir=tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with Image.open(data / entry["image"]) as image, Image.open(tmp_path / "out" / "case_0001_seg.png") as found:
        assert found.size == image.size
        written = np.array(found)
    inference(folder, data / entry["image"], tmp_path / "here").run()
    with Image.open(tmp_path / "here" / "case_0001_seg.png") as here:
        assert (written == np.array(here)).mean() >= 0.9999
