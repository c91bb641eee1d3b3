# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The file of published numbers: what it holds, and that nothing malformed is taken."""

from __future__ import annotations

import json
import re
from importlib import resources

import pytest

from dacal_med.comparison.published import FILE, load_published
from dacal_med.io.errors import InputError


def numbers(task, metric="miou", status="published"):
    return {
        (entry.method, entry.classes, entry.split): entry.value
        for entry in load_published().tasks[task].results
        if (entry.metric, entry.status) == (metric, status)
    }


def test_the_file_comes_with_the_package():
    assert FILE.is_file()
    assert (resources.files("dacal_med.comparison") / FILE.name).is_file()


def test_the_published_numbers_are_those_of_the_papers():
    assert numbers("gta2cityscapes") == {
        ("DAFormer", 19, "val"): 68.3,
        ("HRDA", 19, "val"): 73.8,
        ("MIC (HRDA)", 19, "val"): 75.9,
    }
    assert numbers("synthia2cityscapes") == {("DAFormer", 16, "val"): 60.9, ("HRDA", 16, "val"): 65.8}
    assert numbers("cityscapes2acdc") == {("DAFormer", 19, "test"): 55.4, ("HRDA", 19, "test"): 68.0}
    assert numbers("cityscapes2darkzurich") == {("DAFormer", 19, "test"): 53.8, ("HRDA", 19, "test"): 55.9}


def test_what_only_others_list_is_marked():
    assert numbers("gta2cityscapes", "ece") == {}
    assert numbers("gta2cityscapes", "ece", "third_party") == {("DA-Cal", 19, "unknown"): 4.59}
    for task in load_published().tasks.values():
        for entry in task.results:
            assert entry.status == "published" or re.search("not seen|as listed by", entry.where), entry


def test_every_source_is_cited_by_a_number():
    published = load_published()
    cited = {entry.source for task in published.tasks.values() for entry in task.results}
    assert cited == set(published.sources)
    for source in published.sources.values():
        assert source.arxiv is None or re.fullmatch(r"\d{4}\.\d{5}", source.arxiv)


def test_tasks_are_found_by_bundle_and_data():
    published = load_published()
    assert published.of_bundle("dacal_gta2cityscapes", "anything").name == "gta2cityscapes"
    assert published.of_bundle("dacal_em", "Mitochondria, MitoEM-H to MitoEM-R").name == "mitoem_h2r"
    assert published.of_bundle("dacal_em", "mine") is None
    assert published.of_bundle("dacal_ct2mr", "mine") is None
    with pytest.raises(InputError, match=r"--task: found 'gta2cityscape'; did you mean 'gta2cityscapes'\?"):
        published.find("gta2cityscape")
    with pytest.raises(InputError, match=r"--task: found 'xyz'; known are gta2cityscapes, synthia2cityscapes"):
        published.find("xyz")


def change(task=None, result=None, source=None, **top):
    """The file's content with a few values changed; a value of ``...`` removes its key."""
    content = json.loads(FILE.read_text())
    name = "gta2cityscapes"
    for place, values in (
        (content, top),
        (content["tasks"][name], task or {}),
        (content["tasks"][name]["results"][1], result or {}),
        (content["sources"]["daformer"], source or {}),
    ):
        for key, value in values.items():
            if value is ...:
                del place[key]
            else:
                place[key] = value
    return content


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ...}, r"found \['tasks'\], wanted the keys sources, tasks"),
        ({"source": {"citation": ""}}, "sources: daformer: citation: found '', wanted a text"),
        ({"source": {"arxiv": 2111.14887}}, "sources: daformer: arxiv: found 2111.14887, wanted a number such as"),
        ({"source": {"url": "x"}}, r"sources: daformer: found \['arxiv', 'citation', 'url'\]"),
        ({"task": {"bundle": ...}}, "gta2cityscapes: found .*, wanted the keys title, bundle"),
        ({"task": {"target_val": 0}}, "gta2cityscapes: target_val: found 0, wanted a number of images"),
        ({"task": {"results": []}}, r"gta2cityscapes: results: found \[\], wanted a list"),
        ({"result": {"value": 683}}, "gta2cityscapes: result 1: value: found 683, wanted percent, 0 to 100"),
        ({"result": {"value": True}}, "result 1: value: found True"),
        ({"result": {"value": "68.3"}}, "result 1: value: found '68.3'"),
        ({"result": {"metric": "mIoU"}}, "result 1: metric: found 'mIoU', wanted one of miou, dice, ece"),
        ({"result": {"status": "confirmed"}}, "status: found 'confirmed', wanted one of published, third_party"),
        ({"result": {"source": "hoyer"}}, "source: found 'hoyer', wanted one of daformer"),
        ({"result": {"over": "voxels"}}, "over: found 'voxels', wanted one of pixels, cases"),
        ({"result": {"classes": 19.0}}, "classes: found 19.0, wanted a number of classes"),
        ({"result": {"metric": "ece", "over": "cases"}}, "over: found 'cases', wanted pixels for ece"),
        (
            {
                "result": {
                    "method": "DA-Cal",
                    "metric": "ece",
                    "classes": 3,
                    "split": "unknown",
                    "status": "third_party",
                }
            },
            "found DA-Cal, ece, pixels, unknown, third_party more than once",
        ),
        ({"result": {"where": ...}}, "result 1: found .*, wanted the keys method, metric"),
        ({"result": {"method": "HRDA", "value": 1.0}}, "found HRDA, miou, 19, pixels, val, published more than once"),
    ],
)
def test_what_does_not_fit_the_schema_is_named(tmp_path, changes, message):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(change(**changes)))
    with pytest.raises(InputError, match=message) as error:
        load_published(path)
    assert str(error.value).startswith(str(path))


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "published.json").write_text("{")
    with pytest.raises(InputError, match=r"published\.json is not readable as JSON"):
        load_published(tmp_path / "published.json")
