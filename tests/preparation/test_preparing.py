# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""What holds for every recipe: plans, label tables, splits, resuming, and what the command says."""

from __future__ import annotations

import json
import re
import runpy
import sys
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dacal_med.cli import main
from dacal_med.data.datalist import load_datalist
from dacal_med.io.errors import InputError
from dacal_med.preparation import RECIPES, Request, find_recipe, prepare
from dacal_med.preparation.cases import Case, Part, Plan, Volume, check_plan
from dacal_med.preparation.folders import find_root, matching, require_same
from dacal_med.preparation.labels import LabelTable
from dacal_med.preparation.reading import read_volume
from dacal_med.preparation.recipe import Owner, Recipe, Role
from dacal_med.preparation.split import section_blocks, split_patients
from tests.preparation.builders import hashes, holding, noise, save

ROOT = Path(__file__).resolve().parents[2]
TABLE = LabelTable.of((0, "nothing", 0, "background"), ((10, 19), "organ", 1, "organ"), (30, "other", 0, "background"))
OWNER = Owner("Tiny", "https://example.org", "CC0", "none")


def case(folder: Path, number: int, part: Part, patient: str = "") -> Case:
    image, label = folder / f"{number}.nii.gz", folder / f"{number}_label.nii.gz"
    read = None if part == "target_train" else partial(read_volume, label)
    return Case(f"case_{number}", patient or f"p{number}", part, (image, label), image, read)


def plan_of(cases: list[Case]) -> Plan:
    return Plan("Tiny", {"source": TABLE, "target": TABLE}, tuple(cases), "by hand", {"source": "CT", "target": "MR"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        save(tmp_path / "in" / f"{number}.nii.gz", noise(seed=number))
        save(tmp_path / "in" / f"{number}_label.nii.gz", holding([10, 15, 30]))
    return tmp_path / "in"


def cases_in(folder: Path) -> list[Case]:
    parts: tuple[Part, ...] = ("source", "source", "target_train", "target_val")
    return [case(folder, number, part) for number, part in enumerate(parts)]


def recipe_of(plan: Plan) -> Recipe:
    return Recipe("tiny", "tiny", (Role("data", (OWNER,), "four volumes"),), lambda _: plan, "organ", "by hand")


def run(plan: Plan, folder: Path, out: Path, **changes: int) -> None:
    prepare(recipe_of(plan), Request({"data": folder}, **changes), out, progress=False)


# Label tables


def test_remap_entry_by_entry():
    found = TABLE.remap(np.array([0, 10, 14, 19, 30], np.float32), "file")
    assert found.dtype == np.uint8
    assert found.tolist() == [0, 1, 1, 1, 0]
    assert TABLE.count(found) == {"background": 2, "organ": 3}


@pytest.mark.parametrize("value", [-1, 1, 9, 20, 29, 31, 10.5, np.nan, 1e9])
def test_uncovered_values_are_refused(value: float):
    with pytest.raises(InputError, match=r"file: found the label value.* in 1 voxel.*wanted only 0, 10-19, 30"):
        TABLE.remap(np.array([0, value, 10]), "file")


def test_remap_of_large_arrays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dacal_med.preparation.labels._BLOCK", 7)
    array = holding([10, 14, 30], (4, 5, 3))
    wanted = np.where((array >= 10) & (array < 20), 1, 0)
    # A view in another order of memory, as volumes are after their axes were exchanged.
    np.testing.assert_array_equal(TABLE.remap(array.T, "file"), wanted.T)
    array[3, 4, 2] = 7
    with pytest.raises(InputError, match=r"\[7\.0\] in 1 voxel"):
        TABLE.remap(array.T, "file")


@given(st.lists(st.integers(-5, 40), min_size=1, max_size=30))
def test_remap_agrees_with_the_rows(values: list[int]):
    covered = all(any(row.low <= value <= row.high for row in TABLE.rows) for value in values)
    if not covered:
        with pytest.raises(InputError):
            TABLE.remap(np.array(values), "file")
        return
    wanted = [next(row.value for row in TABLE.rows if row.low <= value <= row.high) for value in values]
    assert TABLE.remap(np.array(values), "file").tolist() == wanted


@pytest.mark.parametrize(
    "rows",
    [
        [(0, "a", 0, "background"), ((1, 3), "b", 1, "b"), (3, "c", 2, "c")],
        [(0, "a", 0, "background"), (1, "b", 1, "b"), (2, "c", 1, "c")],
        [(0, "a", 0, "nothing")],
        [(0, "a", 0, "background"), (1, "b", 255, "b")],
        [(0, "a", 0, "background"), ((3, 1), "b", 1, "b")],
    ],
)
def test_contradictory_tables_are_refused(rows: list[tuple[int | tuple[int, int], str, int, str]]):
    with pytest.raises(ValueError, match="label table"):
        LabelTable.of(*rows)


# Splits and plans


@given(st.integers(3, 60), st.integers(0, 5))
def test_splits_are_by_patient_complete_and_repeatable(count: int, seed: int):
    patients = [f"p{number}" for number in range(count)]
    shares: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}
    split = split_patients(patients + patients, shares, seed)
    assert sorted(split) == sorted(patients)
    assert set(split.values()) == {"target_train", "target_val"}
    assert list(split.values()).count("target_val") == max(1, count // 5)
    assert split == split_patients(patients[::-1], shares, seed)


def test_too_few_patients_are_refused():
    shares: dict[Part, Fraction] = {"target_train": Fraction(4, 5), "target_val": Fraction(1, 5)}
    with pytest.raises(InputError, match="found 1 patient"):
        split_patients(["a"], shares, 0)


@given(st.integers(1, 60))
def test_blocks_are_of_neighbours_and_alike_in_size(sections: int):
    blocks = section_blocks("s", sections)
    names = list(dict.fromkeys(blocks))
    assert names == [f"s, block {number + 1}" for number in range(min(5, sections))]
    assert blocks == sorted(blocks)
    sizes = [blocks.count(name) for name in names]
    assert max(sizes) - min(sizes) <= 1


def test_a_patient_in_two_parts_is_refused(folder: Path, tmp_path: Path):
    cases = cases_in(folder)
    cases[3] = replace(cases[3], patient="p2")
    with pytest.raises(InputError, match="patient p2: found in both 'target_train' and 'target_val'"):
        run(plan_of(cases), folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_datalist_names_the_patients(folder: Path, tmp_path: Path):
    cases = cases_in(folder)
    cases[1] = replace(cases[1], patient="p0")
    run(plan_of(cases), folder, tmp_path / "out")
    data = load_datalist(tmp_path / "out")
    assert [case["patient"] for case in (*data.source, *data.target_train, *data.target_val)] == [
        "p0",
        "p0",
        "p2",
        "p3",
    ]
    # Run again, the command adds them to a folder from before there were any.
    content = json.loads((tmp_path / "out" / "datalist.json").read_text())
    for case in content["source"]:
        del case["patient"]
    (tmp_path / "out" / "datalist.json").write_text(json.dumps(content))
    run(plan_of(cases), folder, tmp_path / "out")
    assert load_datalist(tmp_path / "out") == data
    run(replace(plan_of(cases), unit="place"), folder, tmp_path / "places")
    assert all("patient" not in case for case in load_datalist(tmp_path / "places").source)


def test_broken_plans_are_refused(folder: Path):
    cases = cases_in(folder)
    with pytest.raises(InputError, match="case case_0: found twice"):
        check_plan(plan_of([*cases, cases[0]]))
    with pytest.raises(InputError, match="found no case for 'target_val'"):
        check_plan(plan_of(cases[:3]))
    with pytest.raises(InputError, match="case case_3: found no label in 'target_val'"):
        check_plan(plan_of([*cases[:3], replace(cases[3], label=None)]))
    other = LabelTable.of((0, "a", 0, "background"), (1, "b", 1, "b"))
    with pytest.raises(InputError, match="name different classes"):
        check_plan(replace(plan_of(cases), tables={"source": TABLE, "target": other}))


# Preparing


def test_an_interrupted_run_continues(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    cases = cases_in(folder)

    def interrupt() -> Volume:
        raise KeyboardInterrupt

    stopped = [cases[0], replace(cases[1], label=interrupt), *cases[2:]]
    with pytest.raises(KeyboardInterrupt):
        run(plan_of(stopped), folder, out)
    first = out / "source" / "images" / "case_0.nii.gz"
    assert first.is_file()
    assert not (out / "datalist.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.rglob("case_0.nii.gz")}
    assert len(kept) == 2
    # A line cut off while it was written is as good as none.
    with (out / "prepared.jsonl").open("a") as file:
        file.write('{"case": "case_1", "key"')
    run(plan_of(cases), folder, out)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(load_datalist(out).source) == 2
    assert not [path for path in out.rglob(".*") if path.is_file()]
    for line in (out / "prepared.jsonl").read_text().splitlines():
        json.loads(line)


def test_only_what_changed_is_converted_again(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    plan = plan_of(cases_in(folder))
    run(plan, folder, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    save(folder / "1_label.nii.gz", holding([15, 10, 10]))
    (out / "target" / "images" / "case_2.nii.gz").write_bytes(b"damaged")
    run(plan, folder, out)
    changed = {path.relative_to(out).as_posix() for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"source/images/case_1.nii.gz", "source/labels/case_1.nii.gz", "target/images/case_2.nii.gz"}
    assert (out / "target" / "images" / "case_2.nii.gz").read_bytes() == (folder / "2.nii.gz").read_bytes()


def test_a_run_that_fails_leaves_no_older_datalist(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    plan = plan_of(cases_in(folder))
    run(plan, folder, out)
    save(folder / "1_label.nii.gz", holding([99]))
    with pytest.raises(InputError, match=r"1_label\.nii\.gz: found the label value"):
        run(plan, folder, out)
    assert not (out / "datalist.json").exists()


def test_another_label_table_converts_again(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    plan = plan_of(cases_in(folder))
    run(plan, folder, out)
    table = LabelTable.of((0, "nothing", 0, "background"), ((10, 30), "organ", 1, "organ"))
    run(replace(plan, tables={"source": table, "target": table}), folder, out)
    assert "| source | 2 | 2 | 228 | 12 |" in (out / "dataset.md").read_text()


def test_a_case_that_changes_its_part_leaves_no_label_behind(folder: Path, tmp_path: Path):
    out = tmp_path / "out"
    cases = cases_in(folder)
    run(plan_of(cases), folder, out)
    moved = [case(folder, 0, "source"), case(folder, 3, "target_train"), case(folder, 1, "target_val")]
    run(plan_of(moved), folder, out)
    files = {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")}
    assert files == {
        *("source/images/case_0.nii.gz", "source/labels/case_0.nii.gz", "target/images/case_3.nii.gz"),
        *("target/images/case_1.nii.gz", "target/labels/case_1.nii.gz"),
    }


def test_a_folder_holds_one_preparation(folder: Path, tmp_path: Path):
    plan = plan_of(cases_in(folder))
    run(plan, folder, tmp_path / "out")
    with pytest.raises(InputError, match=r"prepared\.jsonl: found the preparation .*'seed': 0.*wanted .*'seed': 1"):
        run(plan, folder, tmp_path / "out", seed=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(InputError, match="found files that are not of this preparation"):
        run(plan, folder, tmp_path / "mine")
    assert hashes(tmp_path / "mine").keys() == {str(tmp_path / "mine" / "notes.txt")}


def test_originals_are_never_written_to(folder: Path):
    with pytest.raises(InputError, match="wanted a folder outside of the originals"):
        run(plan_of(cases_in(folder)), folder, folder / "out")


def test_wrong_requests_are_refused(folder: Path, tmp_path: Path):
    recipe = recipe_of(plan_of(cases_in(folder)))
    with pytest.raises(InputError, match=r"tiny: found the folders \['source'\]; wanted \['data'\]"):
        prepare(recipe, Request({"source": folder}), tmp_path / "out", progress=False)
    with pytest.raises(InputError, match=r"tiny: found the choice\(s\) colour"):
        prepare(recipe, Request({"data": folder}, {"colour": "red"}), tmp_path / "out", progress=False)


# Folders


def test_finding_the_folder_of_an_archive(tmp_path: Path):
    (tmp_path / "a" / "b" / "images").mkdir(parents=True)
    assert find_root(tmp_path, ["images"], "Tiny") == tmp_path / "a" / "b"
    (tmp_path / "a" / "c" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="found Tiny in"):
        find_root(tmp_path, ["images"], "Tiny")
    with pytest.raises(InputError, match="no such folder; wanted Tiny with images"):
        find_root(tmp_path / "missing", ["images"], "Tiny")
    with pytest.raises(InputError, match="found a; wanted Tiny with labels"):
        find_root(tmp_path, ["labels"], "Tiny")


def test_matching_names(tmp_path: Path):
    for name in ("a_1.png", "A_2.PNG", "._a_1.png", "b.png"):
        (tmp_path / name).touch()
    assert list(matching(tmp_path, r"a_(\d)\.png")) == ["2", "1"]
    (tmp_path / "a_01.png").touch()
    with pytest.raises(InputError, match=r"found a_01\.png and a_1\.png for 1; wanted one of them"):
        matching(tmp_path, r"a_0?(\d)\.png")
    with pytest.raises(InputError, match="found no image for 3"):
        require_same({}, {"3": tmp_path}, tmp_path, "case")


# Recipes and the command


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_every_recipe_is_documented(recipe: Recipe, capsys: pytest.CaptureFixture[str]):
    assert re.fullmatch(r"[a-z0-9_]+", recipe.name)
    assert find_recipe(recipe.name) is recipe
    for owner in recipe.owners():
        assert owner.licence and owner.citation and owner.url.startswith("https://")
    for choice in recipe.choices:
        assert choice.default in (choice.values or [""])
    assert f"`{recipe.name}`" in (ROOT / "docs" / "data.md").read_text()
    assert (ROOT / "scripts" / recipe.script).is_file()
    assert main(["prepare", "--list"]) == 0
    assert f"{recipe.name}: {recipe.title}" in capsys.readouterr().out


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.name for recipe in RECIPES])
def test_scripts_are_the_commands(recipe: Recipe, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    script = ROOT / "scripts" / recipe.script
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert f"prepare {recipe.name}" in capsys.readouterr().out


def test_documented_pairs_of_m3da_are_choices_in_both_directions():
    text = (ROOT / "docs" / "data.md").read_text().partition("## The pairs of M3DA")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:4] for line in text.splitlines() if "`prepare " in line]
    assert len(rows) == 7
    for there, back in rows:
        words = there.strip(" `").split()[1:]
        recipe, options = find_recipe(words[0]), dict(zip(words[1::2], words[2::2], strict=True))
        if not options:
            assert find_recipe(back.strip(" `").split()[1]).roles == recipe.roles
            continue
        reverse = back.strip(" `").split()
        (a, first), (b, second) = options.items()
        assert reverse == [a, second, b, first]
        allowed = {f"--{choice.name.replace('_', '-')}": choice.values for choice in recipe.choices}
        assert {first, second} <= set(allowed[a]) & set(allowed[b])


def test_recipe_names_are_unique():
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


def test_every_script_belongs_to_a_recipe():
    scripts = sorted(path.name for path in (ROOT / "scripts").glob("prepare_*.py"))
    assert scripts == sorted(recipe.script for recipe in RECIPES)


def test_misspelt_recipes_are_refused():
    with pytest.raises(InputError, match="did you mean mmwhs_ct2mr"):
        find_recipe("mmwhs_ct2mri")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("gta5", "gta2cityscapes?"),
        ("GTA", "gta2cityscapes?"),
        ("dark_zurich", "cityscapes2darkzurich?"),
        ("acdc", "cityscapes2acdc?"),
        ("lidc", "lidc_domain2domain?"),
        ("nothing_like_it", "wanted one of mmwhs_ct2mr, "),
    ],
)
def test_a_part_of_a_name_says_what_is_meant(name: str, meant: str, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", name, "--out", "x"]) == 2
    said = "" if meant.startswith("wanted") else "did you mean "
    assert f"prepare: found the recipe {name!r}; {said}{meant}" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["x" * 5000, "~nobody-of-this-name/x"])
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_folders_that_no_one_can_have_are_refused(
    recipe: Recipe, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = [f"--{role.name.replace('_', '-')}={place}" for role in recipe.roles]
    assert main(["prepare", recipe.name, *words, f"--out={tmp_path / 'out'}"]) == 2
    told = capsys.readouterr().err
    assert f"--{recipe.roles[0].name}: found the path {place[:20]!r}"[:-1] in told
    assert len(told) < 500


def test_bad_input_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["prepare", "mmwhs_ct2mr", "--data", str(tmp_path), "--out", str(tmp_path.parent / "x")]) == 2
    assert "found nothing; wanted MM-WHS 2017 with ct_train, mr_train" in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "0.5", "x", ""])
def test_seeds_that_are_none_are_refused(seed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        main(["prepare", "mmwhs_ct2mr", "--data", str(tmp_path), "--out", str(tmp_path / "x"), "--seed", seed])
    assert stop.value.code == 2
    assert f"argument --seed: found {seed!r}; wanted a whole number from 0" in capsys.readouterr().err
