"""The page of an evaluation session: one self-contained HTML file, everything in it escaped.

Here the numbers become what the template `report.html.j2` lays out; plots are inline SVG from `plots.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from llmops.evals.evidence import BOUND_LEVEL, REPORT_LEVEL, Result, Samples
from llmops.evals.metrics.metric import POINTS
from llmops.evals.plots import (
    POINTS_RANGE,
    Forest,
    Histogram,
    Scatter,
    forest,
    histogram,
    range_of,
    scatter,
)
from llmops.evals.reports.comparison import CaseLine, Comparison, Evaluated, MetricLine, slice_values
from llmops.evals.reports.units import shown, shown_difference
from llmops.records import Case, Completion, MetricResult, Report, ToolCall
from llmops.schema import JsonDict, canonical_json, short
from llmops.stats import Interval


@dataclass(frozen=True)
class Exchange:
    """An answer to a case, or one of several in a conversation; `user` is the follow-up that it answers."""

    user: str | None
    text: str
    calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Side:
    """One system's answers to a case, as shown: those of sample 0."""

    index: int
    system: str
    score: str
    n_samples: int
    exchanges: tuple[Exchange, ...]
    cut: bool


@dataclass(frozen=True)
class Shown:
    """A case side by side; `expected` is what metrics without references hold the answer against."""

    case: Case
    expected: str | None
    sides: tuple[Side, Side]
    gain: float
    difference: str


@dataclass(frozen=True)
class Contrast:
    """A comparison as drawn."""

    found: Comparison
    baseline: int
    candidate: int
    forests: tuple[Forest, ...]
    scatter: Scatter
    worst: tuple[Shown, ...]
    best: tuple[Shown, ...]


@dataclass(frozen=True)
class SliceRow:
    """A slice: its cases, by metric each system's interval, and the first comparison's difference."""

    value: str
    n_cases: int
    values: dict[str, tuple[Interval | None, ...]]
    differences: dict[str, MetricLine]


def render(parts: Sequence[Evaluated]) -> str:
    """The page as text, with a section for each suite of one session."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "value": shown,
        "difference": shown_difference,
        "bounds": _bounds,
    }
    template = environment.from_string(
        files("llmops.evals").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    first = parts[0].results[0].report
    return template.render(
        title=" · ".join(part.suite.config.name for part in parts),
        first=first,
        engine=short_engine(first),
        levels={"each": BOUND_LEVEL, "both": REPORT_LEVEL},
        invalid=[r.report for part in parts for r in part.results if r.report.invalid],
        suites=[_section(part) for part in parts],
    )  # fmt: skip


def _section(part: Evaluated) -> JsonDict:
    suite, results = part.suite, part.results
    return {
        "name": suite.config.name,
        "cases": _cases_line(part),
        "reports": [r.report for r in results],
        "metrics": suite.metrics,
        "primary": suite.metrics[0].name,
        "max_tokens": suite.config.decoding.max_tokens,
        "answers": [_answer_row(r) for r in results],
        "histograms": _histograms(part),
        "slices": _slices(part),
        "contrasts": [_contrast(part, found) for found in part.comparisons],
        "signature": _signature(part),
    }


def _cases_line(part: Evaluated) -> str:
    cases, n_samples = part.suite.cases, part.suite.config.samples
    groups = len({case.group for case in cases})
    each = f", {n_samples} answers each" if n_samples > 1 else ""
    return f"{len(cases)} cases from {groups} groups{each}"


def _answer_row(result: Result) -> JsonDict:
    """What the answers of one system were like."""
    answered = [c for own in result.samples for c in own if c.status == "answered"]
    n = len(answered)
    return {
        "answered": n,
        "errored": sum(map(len, result.samples)) - n,
        "cached": sum(c.cached for c in answered),
        "cut": sum(c.finish_reason == "length" for c in answered) / n if n else None,
        "tokens": statistics.fmean(c.n_completion_tokens for c in answered) if n else None,
        "latency": statistics.median(c.latency_s for c in answered) if n else None,
    }


def _contrast(part: Evaluated, found: Comparison) -> Contrast:
    reports = [r.report for r in part.results]
    pair = tuple(reports.index(report) for report in (found.baseline, found.candidate))
    before, after = (
        side[found.by].per_case.tolist() for side in (found.paired.baseline, found.paired.candidate)
    )
    line = found.line(found.by)
    ends = POINTS_RANGE if line.unit == POINTS else range_of([before, after])
    return Contrast(
        found=found,
        baseline=pair[0],
        candidate=pair[1],
        forests=_forests(found.metrics),
        scatter=scatter(before, after, ends),
        worst=tuple(_shown(case, found, (pair[0], pair[1])) for case in found.worst),
        best=tuple(_shown(case, found, (pair[0], pair[1])) for case in found.best),
    )


def _forests(lines: Sequence[MetricLine]) -> tuple[Forest, ...]:
    """One plot a unit: what is measured in seconds has no place on an axis of points."""
    units = dict.fromkeys(line.unit for line in lines)
    lower = [line.metric for line in lines if line.better == "lower"]
    return tuple(
        forest({line.metric: line.difference for line in lines if line.unit == unit}, unit, lower)
        for unit in units
    )


def _shown(line: CaseLine, found: Comparison, indices: tuple[int, int]) -> Shown:
    unit = found.line(found.by).unit
    reports, samples = (found.baseline, found.candidate), (line.baseline, line.candidate)
    before, after = (
        _side(i, report, own, shown(score, unit), line.case)
        for i, report, own, score in zip(indices, reports, samples, line.scores, strict=True)
    )
    expected = canonical_json(line.case.expected).decode() if line.case.expected else None
    difference = shown_difference(line.scores[1] - line.scores[0], unit)
    return Shown(line.case, expected, (before, after), line.gain, difference)


def _side(index: int, report: Report, samples: Samples, score: str, case: Case) -> Side:
    first = samples[0]
    return Side(
        index, report.system, score, len(samples), _exchanges(case, first), first.finish_reason == "length"
    )


def _exchanges(case: Case, sample: Completion) -> tuple[Exchange, ...]:
    users = (None, *case.follow_ups)
    earlier = tuple(Exchange(user, text) for user, text in zip(users, sample.earlier, strict=False))
    last = users[len(earlier)] if len(earlier) < len(users) else None
    return (*earlier, Exchange(last, sample.text, sample.tool_calls))


def _histograms(part: Evaluated) -> dict[str, tuple[str, Histogram]]:
    """Units and distributions of per-case scores, all systems in one plot a metric; yes-or-no metrics have none."""
    plots = {}
    for metric in part.suite.metrics:
        series = [
            r.scores[metric.name].per_case.tolist() if metric.name in r.scores else [] for r in part.results
        ]
        if metric.kind != "binary" and any(series):
            ends = POINTS_RANGE if metric.unit == POINTS else range_of(series)
            plots[metric.name] = (metric.unit, histogram(series, ends))
    return plots


def _slices(part: Evaluated) -> dict[str, list[SliceRow]]:
    """What slices are about, and a row for each of them."""
    each = [slice_values(part.suite, result) for result in part.results]
    compared = part.comparisons[0].slices if part.comparisons else ()
    differences = {(s.about, s.value): {line.metric: line for line in s.metrics} for s in compared}
    sections: dict[str, list[SliceRow]] = {}
    for name in sorted({name for values in each for name in values}):
        found = [values.get(name, (0, {})) for values in each]
        values = {m.name: tuple(bounds.get(m.name) for _, bounds in found) for m in part.suite.metrics}
        row = SliceRow(name[1], max(n for n, _ in found), values, differences.get(name, {}))
        sections.setdefault(name[0], []).append(row)
    return sections


def _signature(part: Evaluated) -> list[tuple[str, str]]:
    """What could change the numbers, in words."""
    suite, first = part.suite, part.results[0].report
    decoding = ", ".join(f"{name} {value}" for name, value in first.decoding.items() if value is not None)
    lines = [
        ("suite", f"{first.suite} ({short(suite.digest)}): {_cases_line(part)}"),
        ("decoding", decoding),
        ("engine", f"{short_engine(first)}, base {short(first.base)}"),
    ]
    for result in part.results:
        report = result.report
        made = "base" if report.model == report.base else f"adapter {short(report.model)}"
        lines.append(
            (report.system, f"{made} under prompt contract {short(report.prompt_contract)}, "
                            f"report {short(report.digest())}")
        )  # fmt: skip
    return lines


def _bounds(value: MetricLine | MetricResult | Interval, unit: str) -> str:
    """The two bounds of an interval, without the unit; those of a difference have their signs."""
    if isinstance(value, MetricLine):
        low, high = (
            shown_difference(bound, unit, named=False)
            for bound in (value.difference.low, value.difference.high)
        )
    else:
        low, high = (shown(bound, unit, named=False) for bound in (value.low, value.high))
    return f"{low} – {high}"


def short_engine(report: Report) -> str:
    """The engine in a few words."""
    engine = report.engine
    quantized = f", {engine.quantization}" if engine.quantization else ""
    return f"{engine.engine} {engine.version}, {engine.dtype}{quantized} on {engine.device}"
