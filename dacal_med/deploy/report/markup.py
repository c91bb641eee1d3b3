# Copyright (c) dacal_med contributors
# SPDX-License-Identifier: Apache-2.0
"""HTML that cannot be broken by what is put in: text is escaped where it becomes markup."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = {"img", "meta", "br", "col"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Return anything as HTML text; markup stays as it is."""
    return value if isinstance(value, Markup) else Markup(html.escape(str(value)))


def join(parts: Iterable[object], separator: str = "") -> Markup:
    """Return parts one after another."""
    return Markup(separator.join(text(part) for part in parts))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        name: of the element.
        content: text, escaped, or markup.
        attributes: values are escaped; ``class_`` is ``class``, underscores become hyphens, None is left out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{given}>") if name in _VOID else Markup(f"<{name}{given}>{join(content)}</{name}>")


def table(caption: str, header: Sequence[object], rows: Iterable[Sequence[object]], class_: str = "") -> Markup:
    """Return a table whose first column heads the rows.

    Args:
        caption: what it shows.
        header: of the columns.
        rows: cells, text or markup; a cell that is a ``td`` or ``th`` already stays one.
        class_: CSS class.
    """
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", *(_cell(cell, first=k == 0) for k, cell in enumerate(row))) for row in rows]
    inside = tag("caption", caption) + tag("thead", head) + tag("tbody", *body)
    return tag("div", tag("table", Markup(inside), class_=class_ or None), class_="wide")


def _cell(cell: object, first: bool) -> Markup:
    if isinstance(cell, Markup) and cell.startswith(("<td", "<th")):
        return cell
    return tag("th", cell, scope="row") if first else tag("td", cell)


def bar(low: float | None, point: float | None, high: float | None, true: float | None, label: str) -> Markup:
    """Return a small drawing of an interval on [0, 1]: line from low to high, dot at the point, diamond at the truth.

    Args:
        low: lower bound.
        point: the estimate; None draws nothing.
        high: upper bound.
        true: measured value, if known.
        label: the same in words.
    """
    if point is None or low is None or high is None:
        return text("—")
    width, middle = 150.0, 9.0
    x = [6 + (width - 12) * value for value in (low, point, high)]
    grid = "".join(
        f'<line x1="{6 + (width - 12) * v:.1f}" x2="{6 + (width - 12) * v:.1f}" y1="1" y2="17" class="grid"/>'
        for v in (0.0, 0.5, 1.0)
    )
    drawn = (
        f'{grid}<line x1="{x[0]:.1f}" x2="{x[2]:.1f}" y1="{middle}" y2="{middle}" class="range"/>'
        f'<circle cx="{x[1]:.1f}" cy="{middle}" r="4" class="point"/>'
    )
    if true is not None:
        t = 6 + (width - 12) * true
        drawn += f'<path d="M{t:.1f} 3 l5 6 l-5 6 l-5 -6 z" class="truth"/>'
    return tag(
        "svg",
        Markup(drawn),
        viewBox=f"0 0 {width:.0f} 18",
        width=f"{width:.0f}",
        role="img",
        aria_label=label,
        class_="bar",
    )
