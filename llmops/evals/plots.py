"""Geometry of the page's plots: numbers in, SVG coordinates out. The template draws and colours them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llmops.stats import Interval

N_BINS = 20
STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 25, 50, 100)


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where, and what it reads."""

    at: float
    label: str


@dataclass(frozen=True)
class ForestRow:
    """One metric's difference: its bounds and estimate along x, its line at y; `side` of zero: +, -, or 0."""

    name: str
    y: float
    low: float
    estimate: float
    high: float
    side: str
    label: str


@dataclass(frozen=True)
class Forest:
    """Paired differences with their intervals around a line at zero."""

    width: float
    height: float
    left: float
    right: float
    zero: float
    ticks: tuple[Tick, ...]
    rows: tuple[ForestRow, ...]


@dataclass(frozen=True)
class Histogram:
    """Per-case scores of each system as an outline; `paths[i]` is system i's, closed along the axis."""

    width: float
    height: float
    bottom: float
    left: float
    ticks: tuple[Tick, ...]
    paths: tuple[str, ...]
    means: tuple[float | None, ...]


@dataclass(frozen=True)
class Scatter:
    """Per-case scores, baseline along x and candidate up y, with the line of equal scores."""

    size: float
    margin: float
    ticks: tuple[Tick, ...]
    points: tuple[tuple[float, float], ...]
    n_better: int
    n_worse: int


def forest(differences: dict[str, Interval], width: float = 760) -> Forest:
    """Lay out one row a metric; the axis always shows zero."""
    left, right, row_height, top = 110.0, width - 170.0, 30.0, 10.0
    low = min(0.0, *(d.low for d in differences.values()))
    high = max(0.0, *(d.high for d in differences.values()))
    step = nice_step((high - low) / 6 or 1.0)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    high = high if high > low else low + step

    def x(value: float) -> float:
        return round(left + (value - low) / (high - low) * (right - left), 2)

    rows = tuple(
        ForestRow(
            name=name,
            y=top + row_height * (i + 0.5),
            low=x(d.low),
            estimate=x(d.estimate),
            high=x(d.high),
            side="+" if d.low > 0 else "-" if d.high < 0 else "0",
            label=f"{d.estimate:+.2f} [{d.low:+.2f}, {d.high:+.2f}]",
        )
        for i, (name, d) in enumerate(differences.items())
    )
    n_steps = round((high - low) / step)
    ticks = tuple(
        Tick(x(low + i * step), f"{low + i * step:+g}" if low + i * step else "0") for i in range(n_steps + 1)
    )
    return Forest(width, top + row_height * len(rows) + 30, left, right, x(0.0), ticks, rows)


def histogram(series: Sequence[Sequence[float]], width: float = 360, height: float = 150) -> Histogram:
    """Shares of cases in bins of 5 points from 0 to 100, one outline a system, on one scale."""
    left, bottom, top = 16.0, height - 22.0, 8.0
    bin_width = (width - 2 * left) / N_BINS
    shares = [_shares(values) for values in series]
    tallest = max((max(s) for s in shares), default=0.0) or 1.0

    def path(share: Sequence[float]) -> str:
        corners = [f"M{left:g} {bottom:g}"]
        for i, part in enumerate(share):
            y = bottom - part / tallest * (bottom - top)
            corners.append(f"V{y:.2f}H{left + (i + 1) * bin_width:.2f}")
        return "".join(corners) + f"V{bottom:g}Z"

    means = tuple(left + sum(v) / len(v) / 100 * (width - 2 * left) if v else None for v in series)
    ticks = tuple(Tick(left + value / 100 * (width - 2 * left), f"{value}") for value in (0, 25, 50, 75, 100))
    return Histogram(
        width, height, bottom, left, ticks, tuple(path(s) if any(s) else "" for s in shares), means
    )


def _shares(values: Sequence[float]) -> list[float]:
    counts = [0] * N_BINS
    for value in values:
        counts[min(N_BINS - 1, max(0, int(value / 100 * N_BINS)))] += 1
    return [count / len(values) for count in counts] if values else counts  # type: ignore[return-value]


def scatter(baseline: Sequence[float], candidate: Sequence[float], size: float = 340) -> Scatter:
    """One point a case, on 0 to 100 along both axes."""
    margin = 36.0

    def along(value: float) -> float:
        return value / 100 * (size - 2 * margin)

    points = tuple(
        (round(margin + along(a), 2), round(size - margin - along(b), 2))
        for a, b in zip(baseline, candidate, strict=True)
    )
    ticks = tuple(Tick(margin + along(value), f"{value}") for value in (0, 50, 100))
    better = sum(b > a for a, b in zip(baseline, candidate, strict=True))
    worse = sum(b < a for a, b in zip(baseline, candidate, strict=True))
    return Scatter(size, margin, ticks, points, better, worse)


def nice_step(at_least: float) -> float:
    """The smallest round number that is no less than `at_least`.

    >>> nice_step(3.1), nice_step(0.5)
    (5, 0.5)
    """
    return next((step for step in STEPS if step >= at_least), STEPS[-1])
