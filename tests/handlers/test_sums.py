# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Sums as a file: what comes back is what went in, and nothing else is taken."""

from __future__ import annotations

import pytest
import torch

from dacal_med.core.scores import summarise_run
from dacal_med.core.statistics import SegmentationStatistics
from dacal_med.handlers.sums import load_sums, save_sums
from dacal_med.io.errors import InputError


def case(seed: int, **settings) -> SegmentationStatistics:
    generator = torch.Generator().manual_seed(seed)
    statistics = SegmentationStatistics(3, **settings)
    probabilities = torch.rand(1, 3, 6, 5, generator=generator).softmax(dim=1)
    statistics.update(probabilities, torch.randint(0, 3, (1, 1, 6, 5), generator=generator))
    return statistics


def test_every_score_comes_back(tmp_path):
    cases = [case(seed, ignore_index=None, background=None, boundary_width=1) for seed in range(3)]
    save_sums(tmp_path / "statistics.pt", cases, ["a", "b", "c"])
    loaded = load_sums(tmp_path / "statistics.pt")
    assert loaded.class_names == ("a", "b", "c")
    assert loaded.groups == [None, None, None]
    assert [c.settings() for c in loaded.cases] == [c.settings() for c in cases]
    assert loaded.summarise() == summarise_run(cases, ["a", "b", "c"])


def test_groups_subsets_and_regions_come_back(tmp_path):
    cases, names, subsets = [case(seed) for seed in range(3)], ["a", "b", "c"], {"two": ["a", "c"]}
    regions = {"union": ["b", "c"]}
    save_sums(tmp_path / "statistics.pt", cases, names, ["y", None, "x"], subsets, regions)
    loaded = load_sums(tmp_path / "statistics.pt")
    assert loaded.groups == ["y", None, "x"]
    assert loaded.summarise() == summarise_run(cases, names, ["y", None, "x"], subsets, regions)
    assert loaded.regions == regions
    assert list(loaded.summarise()["per_group"]) == ["x", "y"]


def test_files_of_earlier_versions_have_no_groups(tmp_path):
    save_sums(tmp_path / "statistics.pt", [case(0)], ["a", "b", "c"])
    content = torch.load(tmp_path / "statistics.pt", weights_only=True)
    del content["groups"], content["class_subsets"], content["regions"]
    torch.save(content, tmp_path / "statistics.pt")
    loaded = load_sums(tmp_path / "statistics.pt")
    assert (loaded.groups, loaded.class_subsets, loaded.regions) == ([None], {}, {})


def test_another_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no statistics at"):
        load_sums(tmp_path / "statistics.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "statistics.pt")
    with pytest.raises(InputError, match="not a file of statistics"):
        load_sums(tmp_path / "statistics.pt")
    save_sums(tmp_path / "statistics.pt", [case(0)], ["a", "b", "c"])
    content = torch.load(tmp_path / "statistics.pt", weights_only=True)
    torch.save({**content, "regions": {"union": ["d"]}}, tmp_path / "statistics.pt")
    with pytest.raises(InputError, match=r"subsets or regions of the unknown class\(es\) \['d'\]"):
        load_sums(tmp_path / "statistics.pt")
    content["cases"][0]["confusion"] = torch.zeros(2, 2, dtype=torch.int64)
    torch.save(content, tmp_path / "statistics.pt")
    with pytest.raises(InputError, match="confusion: found"):
        load_sums(tmp_path / "statistics.pt")
