"""Geometry of the page's plots: numbers in, SVG coordinates out. The template draws and colours them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmops.evals.reports.units import shown_interval
from llmops.stats import Interval

N_BINS = 20
MANTISSAS = (1, 2, 5, 10)
CHARACTER = 6.9  # width of one in a plot's text, pixels
POINTS_RANGE = (0.0, 100.0)


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
    """Paired differences of metrics of one unit with their intervals around a line at zero."""

    unit: str
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


@dataclass(frozen=True)
class Axis:
    """A range of values with round ends that is drawn between two coordinates."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value lies."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 2)

    def ticks(self, n_steps: int, signed: bool = False) -> tuple[Tick, ...]:
        """Marks at even steps, both ends among them."""
        values = [self.low + i * (self.high - self.low) / n_steps for i in range(n_steps + 1)]
        return tuple(Tick(self.at(v), f"{v:+.6g}" if signed and v else f"{v:.6g}") for v in values)


def forest(
    differences: Mapping[str, Interval], unit: str = "points", lower_is_better: Sequence[str] = ()
) -> Forest:
    """Lay out one row a metric; the axis always shows zero.

    Args:
        differences: by metric; all on one scale.
        unit: of the scale.
        lower_is_better: metrics of which a difference below zero is the better side.
    """
    labels = [shown_interval(d, unit) for d in differences.values()]
    left = 22 + CHARACTER * max(map(len, differences))
    room = 24 + CHARACTER * max(map(len, labels))
    row_height, top = 30.0, 10.0
    low = min(0.0, *(d.low for d in differences.values()))
    high = max(0.0, *(d.high for d in differences.values()))
    step = nice_step((high - low) / 6 or 1.0)
    low, high = step * math.floor(low / step), step * math.ceil(high / step)
    high = high if high > low else low + step
    width = max(760.0, left + room + 240)
    axis = Axis(low, high, left, width - room)
    rows = tuple(
        ForestRow(
            name, top + row_height * (i + 0.5), axis.at(d.low), axis.at(d.estimate), axis.at(d.high),
            _side(d, name in lower_is_better), label,
        )
        for i, ((name, d), label) in enumerate(zip(differences.items(), labels, strict=True))
    )  # fmt: skip
    ticks = axis.ticks(round((high - low) / step), signed=True)
    return Forest(unit, width, top + row_height * len(rows) + 30, left, axis.end, axis.at(0.0), ticks, rows)


def _side(difference: Interval, lower_is_better: bool) -> str:
    if difference.doubt is not None or difference.low <= 0 <= difference.high:
        return "0"
    return "+" if (difference.low > 0) != lower_is_better else "-"


def range_of(series: Sequence[Sequence[float]]) -> tuple[float, float]:
    """Round ends around all values, zero among them where it is near; what points do not need.

    >>> range_of([[0.11, 0.42], [0.3]])
    (0.0, 0.6)
    """
    values = [value for own in series for value in own]
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 < low <= high / 2 or low == high > 0:
        low = 0.0
    step = nice_step((high - low) / 4 or 1.0)
    low = step * math.floor(low / step)
    n_steps = max(1, math.ceil(round((high - low) / step, 9)))
    return low, round(low + step * n_steps, 12)


def histogram(
    series: Sequence[Sequence[float]],
    ends: tuple[float, float] = POINTS_RANGE,
    width: float = 360,
    height: float = 150,
) -> Histogram:
    """Shares of cases in 20 bins between two ends, one outline a system, on one scale."""
    left, bottom, top = 16.0, height - 22.0, 8.0
    axis = Axis(*ends, left, width - left)
    bin_width = (width - 2 * left) / N_BINS
    shares = [_shares(values, ends) for values in series]
    tallest = max((max(s) for s in shares), default=0.0) or 1.0

    def path(share: Sequence[float]) -> str:
        corners = [f"M{left:g} {bottom:g}"]
        for i, part in enumerate(share):
            y = bottom - part / tallest * (bottom - top)
            corners.append(f"V{y:.2f}H{left + (i + 1) * bin_width:.2f}")
        return "".join(corners) + f"V{bottom:g}Z"

    means = tuple(axis.at(sum(v) / len(v)) if v else None for v in series)
    paths = tuple(path(s) if any(s) else "" for s in shares)
    return Histogram(width, height, bottom, left, axis.ticks(4), paths, means)


def _shares(values: Sequence[float], ends: tuple[float, float]) -> list[float]:
    counts = [0] * N_BINS
    low, high = ends
    for value in values:
        counts[min(N_BINS - 1, max(0, int((value - low) / (high - low) * N_BINS)))] += 1
    return [count / len(values) for count in counts] if values else counts  # type: ignore[return-value]


def scatter(
    baseline: Sequence[float],
    candidate: Sequence[float],
    ends: tuple[float, float] = POINTS_RANGE,
    size: float = 340,
) -> Scatter:
    """One point a case, between the same two ends along both axes."""
    margin = 36.0
    across, up = Axis(*ends, margin, size - margin), Axis(*ends, size - margin, margin)
    points = tuple((across.at(a), up.at(b)) for a, b in zip(baseline, candidate, strict=True))
    return Scatter(size, margin, across.ticks(2), points)


def nice_step(at_least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is no less than `at_least` > 0.

    >>> nice_step(3.1), nice_step(0.5), nice_step(0.00012), nice_step(60)
    (5.0, 0.5, 0.0002, 100.0)
    """
    power = 10.0 ** math.floor(math.log10(at_least))
    return next(float(f"{m * power:.12g}") for m in MANTISSAS if m * power >= at_least * (1 - 1e-9))
