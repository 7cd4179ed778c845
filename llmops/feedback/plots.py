"""Pictures of figures as HTML: each is a table whose middle column is drawn, so it can be read without the picture.

The drawing is SVG whose places are shares of the width: it fits any screen without a script. Everything that is written
is escaped here; colours are classes of `page.css`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

EDGE = 3.0  # % of the width kept free at each side, for dots and tick labels


@dataclass(frozen=True)
class Axis:
    """What a picture's width stands for: `low` to `high`, with `ticks` (value, label) and a dashed line at `even`."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    even: float | None = None
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, in % of the width; what lies outside is drawn at the edge."""
        low, high, here = (self._spread(v) for v in (self.low, self.high, value))
        share = (here - low) / (high - low) if high > low else 0.5
        return EDGE + (100 - 2 * EDGE) * min(1.0, max(0.0, share))

    def _spread(self, value: float) -> float:
        return math.log(max(value, 1e-9)) if self.log else value


@dataclass(frozen=True)
class Row:
    """One line of a picture: what it is about, its drawing, the same in words; `off` marks what calls for a look."""

    name: str
    drawing: Markup
    said: str
    off: bool = False


@dataclass(frozen=True)
class Plot:
    """A picture with its title, one sentence, and the headers of its first and last column."""

    title: str
    lead: str
    rows: tuple[Row, ...]
    headers: tuple[str, str]
    axis: Axis | None = None
    legend: tuple[tuple[int, str], ...] = ()


SHARE = Axis(0, 1, ((0, "0 %"), (0.5, "50 %"), (1, "100 %")), 0.5)
"""A share, with even in the middle."""


def figure(plot: Plot) -> Markup:
    """A picture as HTML."""
    body = Markup("").join(_row(row) for row in plot.rows)
    axis = _axis(plot.axis) if plot.axis else Markup("")
    first, last = plot.headers
    head = Markup(
        '<thead><tr><th scope="col" class="name-col">{}</th><th scope="col"><span aria-hidden="true"></span></th>'
        '<th scope="col" class="said-col">{}</th></tr></thead>'
    ).format(first, last)
    table = (
        Markup("<table>{}<tbody>{}{}</tbody></table>").format(head, body, axis) if plot.rows else Markup("")
    )
    return Markup('<figure class="plot"><figcaption><h2>{}</h2><p>{}</p></figcaption>{}{}</figure>').format(
        plot.title, plot.lead, table, _legend(plot.legend)
    )


# ---------------------------------------------------------------- drawings


def interval(axis: Axis, value: float, low: float, high: float) -> Markup:
    """A dot with its interval."""
    return _svg(
        _even(axis),
        Markup('<line class="span" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>').format(
            axis.at(low), axis.at(high)
        ),
        Markup('<circle class="dot" cx="{:.2f}%" cy="50%" r="5"/>').format(axis.at(value)),
    )


def point(axis: Axis, value: float) -> Markup:
    """A dot alone."""
    return _svg(
        _even(axis), Markup('<circle class="dot" cx="{:.2f}%" cy="50%" r="5"/>').format(axis.at(value))
    )


def nothing() -> Markup:
    """No drawing: there is no value."""
    return Markup("")


def box(axis: Axis, quartiles: tuple[float, float, float, float, float]) -> Markup:
    """A box from the lower to the upper quartile, whiskers to the ends, and a line at the median."""
    least, lower, middle, upper, most = (axis.at(value) for value in quartiles)
    return _svg(
        _even(axis),
        Markup('<line class="span" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>').format(least, most),
        _rect("box", lower, max(upper - lower, 0.5)),
        Markup('<line class="middle" x1="{0:.2f}%" x2="{0:.2f}%" y1="10%" y2="90%"/>').format(middle),
    )


def parts(counts: Sequence[tuple[int, int]], whole: int) -> Markup:
    """Counts (class, n) side by side as shares of a whole."""
    drawn, start = [], 0.0
    for kind, n in counts:
        width = 100 * n / whole if whole else 0.0
        drawn.append(_rect(f"fill-{kind}", start, width))
        start += width
    return _svg(_rect("rest", 0, 100), *drawn)


def bars(counts: Sequence[int], most: int) -> Markup:
    """One bar a count, all as high as `most` at most."""
    width = 100 / max(len(counts), 1)
    drawn = [
        Markup('<rect class="fill-1" x="{:.2f}%" width="{:.2f}%" y="{:.2f}%" height="{:.2f}%"/>').format(
            i * width, width * 0.8, 100 - 100 * n / most, 100 * n / most
        )
        for i, n in enumerate(counts)
        if n and most
    ]
    return _svg(Markup('<line class="rule" x1="0" x2="100%" y1="100%" y2="100%"/>'), *drawn)


def _rect(kind: str, x: float, width: float) -> Markup:
    return Markup('<rect class="{}" x="{:.2f}%" width="{:.2f}%" y="15%" height="70%"/>').format(
        kind, x, width
    )


def _svg(*drawn: Markup) -> Markup:
    return Markup('<svg aria-hidden="true" focusable="false">{}</svg>').format(Markup("").join(drawn))


def _even(axis: Axis) -> Markup:
    line = Markup('<line class="rule" x1="{:.2f}%" x2="{:.2f}%" y1="50%" y2="50%"/>').format(EDGE, 100 - EDGE)
    if axis.even is None:
        return line
    at = axis.at(axis.even)
    return line + Markup('<line class="even" x1="{0:.2f}%" x2="{0:.2f}%" y1="-20%" y2="120%"/>').format(at)


# ---------------------------------------------------------------- around them


def _row(row: Row) -> Markup:
    return Markup('<tr{}><th scope="row" title="{}">{}</th><td>{}</td><td>{}</td></tr>').format(
        Markup(' class="off"') if row.off else "", row.name, row.name, row.drawing, row.said
    )


def _axis(axis: Axis) -> Markup:
    """Tick labels under the drawings; the first and the last one stay inside."""
    labels = []
    for value, label in axis.ticks:
        at = axis.at(value)
        anchor = "start" if at <= EDGE else "end" if at >= 100 - EDGE else "middle"
        labels.append(
            Markup('<text x="{:.2f}%" y="75%" text-anchor="{}">{}</text>').format(at, anchor, label)
        )
    return Markup('<tr class="axis" aria-hidden="true"><td></td><td>{}</td><td></td></tr>').format(
        _svg(*labels)
    )


def _legend(entries: Sequence[tuple[int, str]]) -> Markup:
    if not entries:
        return Markup("")
    items = (
        Markup(
            '<li><svg aria-hidden="true"><rect class="fill-{}" width="100%" height="100%"/></svg>{}</li>'
        ).format(kind, word)
        for kind, word in entries
    )
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))
