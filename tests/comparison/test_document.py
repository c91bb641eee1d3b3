# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""Tables and pictures show the numbers they are given, what is missing, and which method is best."""

from __future__ import annotations

import json

import pytest
import torch
from matplotlib.colors import to_hex

from dacal_med.comparison.aggregate import collect, pooled_tables, table_order
from dacal_med.comparison.document import comparison_markdown, write_comparison
from dacal_med.comparison.methods import Method
from dacal_med.comparison.plots import (
    MAX_CURVES,
    dice_against_ece,
    label,
    reliability_curves,
    reliability_overlay_of,
)
from dacal_med.core.scores import SCORES, ReliabilityTable
from tests.comparison.builders import sums, write_run

HOST = Method("host", "Host")
METHODS = (
    HOST,
    Method("host+oracle", "Host + target scaling", oracle=True, base="host"),
    Method("ours", "Ours"),
    Method("host+scaling", "Host + scaling", base="host"),
)


def summary(**scores):
    per_class = {
        "background": {"dice": 0.9, "ece": 0.01},
        "liver": {"dice": scores["dice"], "ece": 0.0321},
        "absent organ": {"dice": None, "ece": 0.0},
    }
    per_case = {name: {"mean": 0.5, "std": 0.25, "n": 3} for name in SCORES}
    base = {**dict.fromkeys(SCORES, 0.25), "nll": 1.0, "ece": 0.1, **scores}
    return {**base, "per_class": per_class, "per_case": per_case}


def compare(folder, values, methods=METHODS, seeds=(0, 1), failures=None, reference="host"):
    """Collect runs whose scores are ``values[method][seed]``; all have the same sums."""
    for name, by_seed in values.items():
        for seed, scores in enumerate(by_seed):
            write_run(folder, name, seed, sums(3.0), summary(**scores), seconds=60.0 * (seed + 1), memory=2048.0)
    result = collect(folder, methods, seeds, failures or {}, reference)
    result["class_names"] = ["background", "liver", "absent organ"]
    return result


@pytest.fixture
def result(tmp_path):
    values = {
        "host": [{"dice": 0.5, "ece": 0.10}, {"dice": 0.6, "ece": 0.12}],
        "ours": [{"dice": 0.7, "ece": 0.05}, {"dice": 0.8, "ece": 0.06}],
        "host+scaling": [{"dice": 0.5, "ece": 0.04}, {"dice": 0.6, "ece": 0.07}],
        "host+oracle": [{"dice": 0.9, "ece": 0.01}, {"dice": 0.9, "ece": 0.01}],
    }
    return compare(tmp_path, values)


def rows_after(text, heading, table=0):
    """Return the cells of the ``table``-th table after a line: header first, by row."""
    lines = text[text.index(heading) :].splitlines()
    tables, inside = [], False
    for line in lines:
        if line.startswith("|") and not inside:
            tables.append([])
        inside = line.startswith("|")
        if inside and not line.startswith("|---"):
            tables[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
    return tables[table]


def cell(rows, name, column):
    row = next(row for row in rows if row[0] == name)
    return row[rows[0].index(column)]


def test_rows_are_ordered_by_kind(result):
    assert table_order(result) == ["host", "host+scaling", "ours", "host+oracle"]
    rows = rows_after(comparison_markdown(result, "x", {}), "## Scores")
    assert [row[0] for row in rows[1:]] == ["Host", "↳ scaling", "Ours", "Host + target scaling (oracle)"]
    assert len({len(row) for row in rows}) == 1


def test_a_calibrator_whose_base_is_not_compared_keeps_its_title(tmp_path):
    methods = (Method("z+scaling", "Z + scaling", base="z"), HOST)
    values = {"host": [{"dice": 0.5}], "z+scaling": [{"dice": 0.5}]}
    rows = rows_after(comparison_markdown(compare(tmp_path, values, methods, seeds=(0,)), "x", {}), "## Scores")
    assert [row[0] for row in rows[1:]] == ["Host", "↳ Z + scaling"]


def test_cells_are_mean_and_spread_with_the_best_bold(result):
    rows = rows_after(comparison_markdown(result, "x", {}), "## Scores")
    # The standard deviation of two values is their distance over the square root of two.
    assert cell(rows, "Host", "Dice ↑") == "0.550 ± 0.071"
    assert cell(rows, "Ours", "Dice ↑") == "**0.750 ± 0.071**"
    assert cell(rows, "Host", "ECE ↓") == "0.1100 ± 0.0141"
    assert cell(rows, "Ours", "ECE ↓") == "**0.0550 ± 0.0071**"
    assert cell(rows, "↳ scaling", "ECE ↓") == "**0.0550 ± 0.0212**", "ties are all bold"
    assert cell(rows, "Host + target scaling (oracle)", "ECE ↓") == "0.0100 ± 0.0000", "no oracle is bold"
    assert cell(rows, "Host", "time (min)") == "1.5 ± 0.7"
    assert cell(rows, "Host", "peak memory (MiB)") == "2048 ± 0"
    assert rows[0][1:] == [
        *("Dice ↑", "mIoU ↑", "MCC ↑", "mAP ↑", "ECE ↓", "foreground ECE ↓", "boundary ECE ↓", "class-wise ECE ↓"),
        *("NLL ↓", "foreground NLL ↓", "Brier ↓", "time (min)", "peak memory (MiB)"),
    ]


def test_where_no_class_is_background_nothing_is_said_of_the_foreground_twice(result):
    result["methods"]["ours"]["mean"]["temperature"] = dict.fromkeys(("mean", "std", "at_bounds", "auroc"), 0.5)
    result["methods"]["ours"]["mean"]["temperature"]["foreground_auroc"] = 0.25
    assert "foreground" in rows_after(comparison_markdown(result, "x", {}), "## Temperature")[0][-1]
    assert len(dice_against_ece(result).axes) == 2
    result["background"] = None
    text = comparison_markdown(result, "x", {})
    assert "foreground" not in text
    assert rows_after(text, "## Temperature")[0][-1] == "AUROC for errors"
    rows = rows_after(text, "## Differences to Host")
    assert cell(rows, "Ours", "ECE, relative change") == "-50.0 %"
    (panel,) = dice_against_ece(result).axes
    assert panel.get_ylabel() == "ECE (down is better)"


def test_means_that_read_the_same_are_ties(tmp_path):
    values = {"host": [{"dice": 0.50001, "brier": None}], "ours": [{"dice": 0.50002, "brier": None}]}
    rows = rows_after(
        comparison_markdown(compare(tmp_path, values, (HOST, METHODS[2]), seeds=(0,)), "x", {}), "## Scores"
    )
    assert cell(rows, "Host", "Dice ↑") == cell(rows, "Ours", "Dice ↑") == "**0.500**", "one seed has no spread"
    assert cell(rows, "Host", "Brier ↓") == "—"


def test_differences_have_intervals_and_relative_changes(result):
    text = comparison_markdown(result, "x", {})
    rows = rows_after(text, "## Differences to Host")
    assert [row[0] for row in rows[1:]] == ["Host (reference)", "↳ scaling", "Ours", "Host + target scaling (oracle)"]
    assert rows[1][1:] == ["—"] * (len(rows[0]) - 1)
    assert cell(rows, "Ours", "seeds") == "2"
    assert cell(rows, "Ours", "Δ Dice ↑") == "+0.200 [+0.200, +0.200]"
    # Differences -0.05 and -0.06: the half width is t(0.975, 1) = 12.7062 times 0.005.
    assert cell(rows, "Ours", "Δ ECE ↓") == "-0.0550 [-0.1185, +0.0085]"
    assert cell(rows, "Ours", "ECE, relative change") == "-50.0 %"
    assert cell(rows, "Ours", "foreground ECE, relative change") == "+0.0 %"
    cases = rows_after(text, "## Differences to Host", table=1)
    assert cell(cases, "Ours", "cases") == "3"
    assert cell(cases, "Ours", "Δ NLL ↓") == "+0.000 [+0.000, +0.000]"


def test_a_score_of_fewer_pairs_tells_how_many(tmp_path):
    values = {"host": [{"dice": 0.5}, {"dice": None}], "ours": [{"dice": 0.75}, {"dice": 0.75}]}
    text = comparison_markdown(compare(tmp_path, values, (HOST, METHODS[2])), "x", {})
    rows = rows_after(text, "## Differences")
    assert cell(rows, "Ours", "seeds") == "2"
    assert cell(rows, "Ours", "Δ Dice ↑") == "+0.250 (n = 1)"


def test_scores_of_cases_and_classes(result):
    text = comparison_markdown(result, "x", {})
    assert cell(rows_after(text, "## Mean over cases"), "Ours", "foreground ECE ↓") == "0.5000 ± 0.2500"
    dice, ece = rows_after(text, "## Classes"), rows_after(text, "### ECE")
    assert dice[0] == ["method", "background", "liver", "absent organ"]
    assert dice[1] == ["Host", "0.900", "0.550", "absent"]
    assert ece[1] == ["Host", "0.0100", "0.0321", "absent"]


def test_a_failed_seed_is_marked_and_explained(tmp_path):
    values = {"host": [{"dice": 0.5}, {"dice": 0.6}], "ours": [{"dice": 0.7}]}
    failures = {("ours", 1): "exit status 1: RuntimeError: a | b\nmore"}
    text = comparison_markdown(compare(tmp_path, values, (HOST, METHODS[2]), failures=failures), "x", {})
    rows = rows_after(text, "## Scores")
    assert cell(rows, "Ours — 1 of 2 seeds", "Dice ↑") == "**0.700**"
    assert "\n- Ours, seed 1: exit status 1: RuntimeError: a | b more\n" in text


def test_a_method_without_results_has_empty_cells(tmp_path):
    values = {"host": [{"dice": 0.5}, {"dice": 0.6}]}
    failures = {("ours", seed): "killed" for seed in (0, 1)}
    result = compare(tmp_path, values, (HOST, METHODS[2]), failures=failures)
    text = comparison_markdown(result, "x", {})
    name = "Ours — 0 of 2 seeds"
    for heading in ("## Scores", "## Mean over cases", "## Classes"):
        row = next(row for row in rows_after(text, heading) if row[0] == name)
        assert set(row[1:]) == {"—"}
    assert cell(rows_after(text, "## Differences"), name, "Δ ECE ↓") == "—"
    handles = dice_against_ece(result).legends[0].get_texts()
    assert [handle.get_text() for handle in handles] == ["Host"]


def test_command_facts_and_pipes(tmp_path):
    methods = (Method("host", "a | b"),)
    text = comparison_markdown(
        compare(tmp_path, {"host": [{"dice": 0.5}]}, methods, seeds=(0,)), "run me", {"commit": "abc", "seeds": "0"}
    )
    assert "```\nrun me\n```\n\n- commit: abc\n- seeds: 0\n" in text
    assert "| a \\| b |" in text


def test_everything_is_written_and_referenced(tmp_path, result):
    write_comparison(tmp_path / "out", result, pooled_tables(tmp_path, result), "x", {"commit": "abc"})
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["comparison.json", "comparison.md", "dice_ece.png", "reliability.png"]
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert written == {**result, "command": "x", "facts": {"commit": "abc"}}
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "](reliability.png)" in text and "](dice_ece.png)" in text
    assert (tmp_path / "out" / "dice_ece.png").read_bytes().startswith(b"\x89PNG")


def test_without_any_result_there_are_no_pictures(tmp_path):
    result = collect(tmp_path, METHODS, [0], {(m.name, 0): "killed" for m in METHODS}, "host")
    write_comparison(tmp_path / "out", result, pooled_tables(tmp_path, result), "x", {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["comparison.json", "comparison.md"]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert ".png" not in text
    assert "Host, the reference, has no results: no paired differences." in text


def test_dice_against_ece_shows_means_spreads_and_seeds(result):
    figure = dice_against_ece(result)
    foreground, everything = figure.axes
    assert (foreground.get_xlabel(), everything.get_ylabel()) == ("Dice (right is better)", "ECE (down is better)")
    points = {(round(float(x), 6), round(float(y), 6)) for line in everything.lines for x, y in [line.get_xydata()[0]]}
    assert {(0.55, 0.11), (0.5, 0.1), (0.6, 0.12), (0.75, 0.055)} <= points
    ours = next(line for line in everything.lines if line.get_xydata()[0].tolist() == pytest.approx([0.75, 0.055]))
    oracle = next(line for line in everything.lines if line.get_xydata()[0].tolist() == pytest.approx([0.9, 0.01]))
    assert to_hex(oracle.get_markerfacecolor()) == "#ffffff" != to_hex(ours.get_markerfacecolor())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        label(result["methods"][name]) for name in table_order(result)
    ]


def many(tmp_path, count):
    """Trained methods m0, m1, ... with falling foreground ECE and a calibrator of m0, the best of all."""
    methods = [Method(f"m{k}", f"M{k}") for k in range(count)]
    methods.append(Method("m0+c", "M0 + C", base="m0"))
    values = {m.name: [{"dice": 0.5, "foreground_ece": 0.5 - 0.01 * k}] for k, m in enumerate(methods)}
    return compare(tmp_path, values, methods, seeds=(0,), reference="m1")


def test_no_two_methods_look_the_same(tmp_path):
    figure = dice_against_ece(many(tmp_path, 14))
    looks = [(line.get_color(), line.get_marker()) for line in figure.legends[0].get_lines()]
    assert len(set(looks)) == len(looks) == 15
    assert looks[0][0] == looks[1][0], "a calibrator has the colour of its base"


def test_of_many_curves_the_reference_bases_and_best_trained_ones_stay(tmp_path):
    result = many(tmp_path, 9)
    assert reliability_curves(result) == ["m0", "m1", "m4", "m5", "m6", "m7", "m8"]
    assert len(reliability_curves(result)) == MAX_CURVES
    text = comparison_markdown(result, "x", {})
    assert "Not shown, for want of distinct colours: M0 + C; M2; M3." in text


def test_overlay_draws_the_table_of_each_method(result):
    edges = torch.linspace(0, 1, 3, dtype=torch.float64)
    tables = {
        name: ReliabilityTable(
            edges[:-1],
            edges[1:],
            torch.tensor([10.0, 30.0]),
            torch.tensor([0.25, 0.5]),
            torch.tensor([0.4, 0.6 + k / 10]),
        )
        for k, name in enumerate(table_order(result))
    }
    figure = reliability_overlay_of(tables, result)
    curves = {line.get_label(): line.get_xdata().tolist() for line in figure.axes[0].lines[1:]}
    # 10 of 40 voxels are off by 0.15, 30 by 0.1 or 0.3.
    assert curves["Host (ECE 11.25 %)"] == pytest.approx([0.4, 0.6])
    assert curves["Ours (ECE 26.25 %)"] == pytest.approx([0.4, 0.8])
    assert figure.axes[0].get_legend() is None
    assert len(figure.legends[0].get_texts()) == 4


def test_the_temperature_map_is_shown_for_methods_that_learn_one(tmp_path):
    maps = [
        {"mean": 1.25, "std": 0.5, "at_bounds": 0.02, "auroc": 0.7, "foreground_auroc": 0.6},
        {"mean": 1.35, "std": 0.7, "at_bounds": 0.04, "auroc": 0.8, "foreground_auroc": 0.6},
    ]
    values = {
        "host": [{"dice": 0.5}, {"dice": 0.6}],
        "ours": [{"dice": 0.7, "temperature": found} for found in maps],
    }
    methods = (HOST, Method("ours", "Ours"))
    text = comparison_markdown(compare(tmp_path, values, methods), "command", {}).partition("## Temperature")[2]
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1:] == ["| Ours | 1.30 ± 0.07 | 0.60 ± 0.14 | 0.030 ± 0.014 | 0.750 ± 0.071 | 0.600 ± 0.000 |"]
    without = comparison_markdown(compare(tmp_path / "b", {"host": values["host"]}, (HOST,)), "command", {})
    assert "## Temperature" not in without


def test_groups_and_subsets_have_tables_where_there_are_any(tmp_path):
    def grouped(fog, night, subset):
        groups = {"fog": {"cases": 3, "dice": fog, "miou": None, "ece": 0.1, "nll": 1.0}}
        groups["night"] = {"cases": 1, "dice": night, "miou": 0.25, "ece": 0.2, "nll": 2.0}
        return {"dice": 0.5, "per_group": groups, "class_subsets": {"13 classes": {"dice": None, "miou": subset}}}

    values = {
        "host": [grouped(0.5, 0.1, 0.4), grouped(0.6, 0.3, 0.6)],
        "ours": [grouped(0.7, 0.2, 0.5), grouped(0.7, 0.2, 0.5)],
    }
    text = comparison_markdown(compare(tmp_path, values, methods=(HOST, Method("ours", "Ours"))), "", {})
    rows = rows_after(text, "## Groups")
    assert rows[0] == ["method", "fog (3 cases)", "night (1 case)"]
    assert rows[1] == ["Host", "0.550 ± 0.071", "0.200 ± 0.141"]
    assert rows_after(text, "### mIoU")[2] == ["Ours", "—", "0.250 ± 0.000"]
    assert rows_after(text, "### ECE ↓")[1] == ["Host", "0.1000 ± 0.0000", "0.2000 ± 0.0000"]
    rows = rows_after(text, "## Subsets of classes")
    assert rows[0] == ["method", "13 classes: Dice ↑", "13 classes: mIoU ↑"]
    assert rows[1] == ["Host", "—", "0.500 ± 0.141"]


def test_regions_have_a_table_where_there_are_any(tmp_path):
    def scores(whole, core):
        return {
            "dice": 0.5,
            "regions": {
                "whole": {"dice": whole, "voxels": 9, "per_case": {"dice": {"mean": whole - 0.1, "std": 0.25, "n": 3}}},
                "core": {"dice": core, "voxels": 0, "per_case": {"dice": {"mean": None, "std": None, "n": 0}}},
            },
        }

    values = {"host": [scores(0.5, None), scores(0.6, None)], "ours": [scores(0.7, None), scores(0.7, 0.2)]}
    result = compare(tmp_path, values, methods=(HOST, Method("ours", "Ours")))
    rows = rows_after(comparison_markdown(result, "", {}), "## Regions")
    head = [f"{name}: Dice{kind} ↑" for name in ("whole", "core") for kind in ("", ", mean over cases")]
    assert rows == [
        ["method", *head],
        ["Host", "0.550 ± 0.071", "0.450 ± 0.250", "—", "—"],
        ["Ours", "0.700 ± 0.000", "0.600 ± 0.250", "0.200", "—"],
    ]


def test_without_groups_there_are_no_tables_of_them(result):
    text = comparison_markdown(result, "", {})
    assert not any(part in text for part in ("## Groups", "## Subsets", "## Regions"))
