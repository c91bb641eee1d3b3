# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""The page of a site report: its sections as HTML, worst first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from dacal_med.deploy.report.figures import confidence_figure, svg_uri
from dacal_med.deploy.report.markup import Markup, bar, join, table, tag, text
from dacal_med.deploy.report.measured import Measured, pooled
from dacal_med.deploy.report.predictions import Prediction
from dacal_med.deploy.report.style import CSS
from dacal_med.deploy.report.words import PICTURES, VOLUMES, Words
from dacal_med.reporting.reliability import reliability_diagram, reliability_histogram

NONE = "—"


@dataclass(frozen=True)
class Picture:
    """A figure of a case.

    Attributes:
        uri: its data URI.
        what: which slice.
        words: what it shows, for those who do not see it.
    """

    uri: str
    what: str
    words: str


@dataclass
class Report:
    """What the page shows.

    Attributes:
        predictions: all cases.
        classes: that trust numbers are given for.
        background: number of the class that is no structure; None where every class is one.
        measured: what labels say, by case name.
        pictures: overlays by case name, those that are shown.
        made: when and with which version.
    """

    predictions: Sequence[Prediction]
    classes: Sequence[str]
    background: int | None = 0
    measured: Mapping[str, Measured] = field(default_factory=dict)
    pictures: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    made: str = ""

    @property
    def good(self) -> list[Prediction]:
        """The cases that succeeded, the lowest expected Dice first."""
        return sorted((p for p in self.predictions if p.ok), key=lambda p: (p.expected_dice(), p.name))

    @property
    def failed(self) -> list[Prediction]:
        """The cases that failed."""
        return [p for p in self.predictions if not p.ok]


def page(report: Report) -> str:
    """Return the whole HTML page."""
    sections = [
        ("summary", "Summary", _summary(report)),
        ("failed", "Failed cases", _failed(report)),
        ("warnings", "Warnings", _warnings(report)),
        ("cases", "Cases, lowest expected Dice first", _cases(report)),
        ("confidence", "Confidence", _confidence(report)),
        ("slices", _words(report).overlays, _slices(report)),
        ("model", "Model and method", _model(report)),
    ]
    shown = [section for section in sections if section[2]]
    links = tag("nav", tag("ul", *(tag("li", tag("a", title, href=f"#{key}")) for key, title, _ in shown)))
    body = [
        tag("header", tag("h1", "Site report: segmentations and how far to trust them"), _subtitle(report), links),
        tag("main", *(tag("section", tag("h2", title), content, id=key) for key, title, content in shown)),
    ]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", "Site report"),
        tag("style", Markup(CSS)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", *body), lang="en") + "\n"


def _subtitle(report: Report) -> Markup:
    model = report.predictions[0].content["model"]
    return tag("p", f"{model['name']}, version {model['version']}. {report.made}", class_="soft")


def _summary(report: Report) -> Markup:
    good, unusual = report.good, [p for p in report.good if p.trust["out_of_distribution"]["unusual"]]
    assessed = any(p.trust["out_of_distribution"]["assessed"] for p in good)
    facts: list[tuple[str, str, bool]] = [
        ("cases segmented", f"{len(good)} of {len(report.predictions)}", bool(report.failed)),
        ("mean expected Dice", _mean([p.trust["mean_expected_dice"] for p in good]), False),
        ("unusual images", f"{len(unusual)}" if assessed else "not assessed", bool(unusual)),
        (
            f"low-confidence {_words(report).cells}",
            _mean([p.trust["low_confidence_share"] for p in good], percent=True),
            False,
        ),
    ]
    if report.measured:
        true = [value for m in report.measured.values() for value in m.dice.values() if value is not None]
        facts.append((f"mean true Dice ({len(report.measured)} labelled)", _mean(true), False))
    parts = [
        tag(
            "dl",
            *(tag("div", tag("dt", k), tag("dd", v), class_="alert" if bad else None) for k, v, bad in facts),
            class_="facts",
        )
    ]
    if good:
        parts += [_class_table(report), tag("p", _reading(report))]
    if good and not assessed:
        parts.append(
            tag(
                "p",
                "The model came without a trust reference: images are not compared with those that it was adapted to, "
                "and intervals are those of an assumption, very wide.",
                class_="notice",
            )
        )
    return join(parts)


def _class_table(report: Report) -> Markup:
    header = [
        "Structure",
        "Found in",
        "Expected Dice, mean",
        "lowest",
        f"Expected {_words(report).size}, mean ({_unit(report)})",
    ]
    header += ["Low confidence", *(["True Dice, mean", "True Dice in interval"] if report.measured else [])]
    rows = []
    for name in report.classes:
        cases = [p.trust["classes"][name] for p in report.good]
        dice = [c["expected_dice"] for c in cases if c["expected_dice"] is not None]
        row = [
            name,
            f"{len(dice)} of {len(cases)}",
            _mean(dice),
            f"{min(dice):.3f}" if dice else NONE,
            _mean([c["expected_volume"] for c in cases], digits=3),
            _mean([c["low_confidence_share"] for c in cases], percent=True),
        ]
        if report.measured:
            pairs = _labelled(report, name)
            inside = sum(interval[0] <= true <= interval[1] for true, interval in pairs)
            row += [_mean([true for true, _ in pairs]), f"{inside} of {len(pairs)}" if pairs else NONE]
        rows.append(row)
    return table("Over all cases that were segmented", header, rows)


def _labelled(report: Report, name: str) -> list[tuple[float, Sequence[float]]]:
    """Return true Dice and interval of the labelled cases that have both."""
    pairs = []
    for p in report.good:
        interval = p.trust["classes"][name]["expected_dice_interval"]
        true = report.measured[p.name].dice[name] if p.name in report.measured else None
        if interval is not None and true is not None:
            pairs.append((true, interval))
    return pairs


def _reading(report: Report) -> str:
    level = report.good[0].trust["level"]
    below = report.good[0].trust["low_confidence_below"]
    return (
        "Expected Dice is what the model's own probabilities say about the overlap with a careful manual outline; no "
        f"label is used. Its interval is meant to hold the true value in {level:.0%} of cases, if the images are like "
        "those that the model was adapted to. Low confidence: the most probable class has a probability below "
        f"{below:.0%}. A model that is wrong and sure of it looks good here: look at the "
        f"{_words(report).overlays.lower()}."
    )


def _failed(report: Report) -> Markup:
    if not report.failed:
        return Markup("")
    rows = [[p.shown, p.content["error"] or "no message"] for p in report.failed]
    return table("Not segmented", ["Case", "Why"], rows)


def _cases(report: Report) -> Markup:
    if not report.good:
        return tag("p", "No case was segmented.")
    unit, words = _unit(report), _words(report)
    notes = {p.name: _notes(p) for p in report.good}
    header = ["Case", "Structure", "Expected Dice", "Interval", "0 to 1", *(["True Dice"] if report.measured else [])]
    header += [
        f"Expected {words.size} ({unit})",
        "Interval",
        "Low confidence",
        *(["Notes"] if any(notes.values()) else []),
    ]
    rows = []
    for p in report.good:
        for k, name in enumerate(report.classes):
            row = _case_row(report, p, name)
            if k == 0:
                span = str(len(report.classes))
                noted = [tag("td", notes[p.name], rowspan=span)] if any(notes.values()) else []
                link = tag("a", p.shown, href=f"#slices-{p.number}") if p.name in report.pictures else p.shown
                head = tag("th", link, scope="rowgroup", rowspan=span)
                rows.append([head, tag("td", name, class_="structure"), *row, *noted])
            else:
                rows.append([tag("td", name, class_="structure"), *row])
    caption = "Dot: expected Dice; line: its interval" + ("; diamond: true Dice" if report.measured else "")
    return table(caption, header, rows)


def _case_row(report: Report, p: Prediction, name: str) -> list[Markup]:
    c = p.trust["classes"][name]
    dice, interval = c["expected_dice"], c["expected_dice_interval"]
    measured = report.measured.get(p.name)
    true = None if measured is None else measured.dice[name]
    words = "not found" if dice is None else f"expected Dice {dice:.2f}, interval {_range(interval, 2)}"
    words += "" if true is None else f", true Dice {true:.2f}"
    low, high = interval if interval is not None else (None, None)
    cells: list[object] = [NONE if dice is None else f"{dice:.3f}", _range(interval, 2)]
    row = [tag("td", cell, class_="number") for cell in cells]
    row.append(tag("td", bar(low, dice, high, true, words)))
    if report.measured:
        row.append(tag("td", NONE if true is None else f"{true:.3f}", class_="number"))
    cells = [_short(c["expected_volume"]), _range(c["expected_volume_interval"]), _percent(c["low_confidence_share"])]
    return row + [tag("td", cell, class_="number") for cell in cells]


def _notes(p: Prediction) -> Markup:
    tests = p.trust["out_of_distribution"]["tests"]
    marks = [tag("div", tag("span", f"unusual {name}", class_="flag")) for name, t in tests.items() if t["unusual"]]
    count = len(p.content["warnings"])
    if count:
        marks.append(tag("div", tag("a", f"{count} warning{'s' * (count > 1)}", href=f"#warnings-{p.number}")))
    return join(marks)


def _warnings(report: Report) -> Markup:
    rows = [
        [tag("th", p.shown, scope="row", id=f"warnings-{p.number}"), tag("td", *(tag("div", w) for w in warnings))]
        for p in report.good
        if (warnings := p.content["warnings"])
    ]
    return table("Cases that were segmented, with warnings", ["Case", "Warnings"], rows) if rows else Markup("")


def _confidence(report: Report) -> Markup:
    cells = _words(report).cells
    histograms = {p.shown: p.trust["confidence_histogram"]["foreground"] for p in report.good}
    if not any(sum(counts) for counts in histograms.values()):
        return Markup("")
    figures = [
        _figure(
            svg_uri(confidence_figure(histograms, "Confidence where a structure is found", cells)),
            f"Share of {cells} by confidence, one line for each of {len(histograms)} cases and their median",
            "A case whose line lies far from the others deserves a look.",
        )
    ]
    if report.measured:
        tables = [m.reliability for m in report.measured.values()]
        front = [m.foreground for m in report.measured.values()]
        both = {f"all {cells}": pooled(tables)}
        if report.background is not None:  # otherwise that is everywhere
            both["truth or prediction a structure"] = pooled(front)
        captions = {
            f"all {cells}": f"Bars below the diagonal: the model is surer than it is right. Below: {cells} by "
            "confidence.",
            "truth or prediction a structure": f"The same where it matters. Missed {cells} are in it, found background "
            "of the same confidence is not, so that even a calibrated model lies below the diagonal.",
        }
        for name, whole in both.items():
            words = f"Reliability diagram over {name}, expected calibration error {100 * whole.ece():.2f} percent"
            figure = reliability_diagram(whole, f"Reliability, {name}")
            figures.append(_figure(svg_uri(_counted_in(figure, cells)), words, captions[name]))
        figures.append(
            _figure(
                svg_uri(_counted_in(reliability_histogram(tables), cells)),
                f"Dataset reliability histogram of {len(tables)} labelled cases: accuracy by confidence, case by case",
                "How the accuracy at one confidence varies from case to case.",
            )
        )
    return tag("div", *figures, class_="pair")


def _slices(report: Report) -> Markup:
    blocks = []
    for p in report.good:
        if p.name in report.pictures:
            figures = [_figure(x.uri, x.words, x.what) for x in report.pictures[p.name]]
            dice = p.trust["mean_expected_dice"]
            words = "nothing found" if dice is None else f"expected Dice {dice:.3f}"
            heading = tag("h3", f"{p.shown}: {words}", *_flags(p))
            blocks.append(tag("div", heading, *figures, class_="case", id=f"slices-{p.number}"))
    if not blocks:
        return Markup("")
    left = len(report.good) - len(blocks)
    note = f"The {left} cases with the highest expected Dice are not shown." if left else ""
    intro = tag("p", f"{_words(report).intro} {note}".strip(), class_="lead")
    return join([intro, *blocks])


def _flags(p: Prediction) -> list[Markup]:
    return [text(" "), tag("span", "unusual image", class_="flag")] if p.trust["out_of_distribution"]["unusual"] else []


def _model(report: Report) -> Markup:
    models = {
        tuple(p.content["model"].get(key, NONE) for key in ("name", "version", "sha256")) for p in report.predictions
    }
    rows = [[name, version, tag("span", digest, class_="code")] for name, version, digest in sorted(models)]
    parts = [table("Models that made these segmentations", ["Name", "Version", "SHA-256"], rows)]
    if len(models) > 1:
        parts.append(tag("p", "The cases are of different models: compare them with care.", class_="notice"))
    fitted = sorted({c["interval_from_cases"] for p in report.good for c in p.trust["classes"].values()})
    if fitted:
        count = f"{fitted[0]}" if len(fitted) == 1 else f"{fitted[0]} to {fitted[-1]}"
        source = "an assumption, no labelled case" if fitted == [0] else f"{count} held-out source cases"
        parts.append(tag("p", f"Intervals come from {source}; how, and how well they held, is told in docs/trust.md."))
    parts.append(tag("p", "Not a medical device: not for diagnosis or treatment.", class_="notice"))
    return join(parts)


def _figure(uri: str, words: str, caption: str) -> Markup:
    return tag("figure", tag("img", src=uri, alt=words), tag("figcaption", caption))


def _words(report: Report) -> Words:
    return PICTURES if _unit(report) == "pixels" else VOLUMES


def _counted_in(figure: Figure, cells: str) -> Figure:
    """Return a reliability figure whose lower axis says what it counts."""
    figure.axes[1].set_ylabel(cells)
    return figure


def _unit(report: Report) -> str:
    return str(report.good[0].trust["unit"]) if report.good else ""


def _mean(values: Sequence[Any], percent: bool = False, digits: int | None = None) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return NONE
    mean = sum(known) / len(known)
    return _percent(mean) if percent else _short(mean) if digits is not None else f"{mean:.3f}"


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _range(interval: Sequence[float] | None, decimals: int | None = None) -> str:
    if interval is None:
        return NONE
    low, high = ((_short(v) if decimals is None else f"{v:.{decimals}f}") for v in interval)
    return f"{low} to {high}"
