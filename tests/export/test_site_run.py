# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What `export` writes is what the site's code runs, for every bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.bundles.builders import Bundle
from tests.site.builders import inference


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
