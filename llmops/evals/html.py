"""The page of an evaluation session: one self-contained HTML file, everything in it escaped.

Here the numbers become what the template `report.html.j2` lays out; plots are inline SVG from `plots.py`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from llmops.evals.compare import Paired, pair
from llmops.evals.evidence import BOUND_LEVEL, REPORT_LEVEL, Result
from llmops.evals.plots import Forest, Histogram, Scatter, forest, histogram, scatter
from llmops.evals.suite import Suite
from llmops.records import Message, Report
from llmops.schema import JsonDict
from llmops.stats import Interval

N_SHOWN = 6  # worst and best cases, each


@dataclass(frozen=True)
class Answer:
    """One system's answer to a case, as shown."""

    index: int
    system: str
    text: str
    score: float
    cut: bool


@dataclass(frozen=True)
class Shown:
    """A case side by side."""

    source: str
    prompt: tuple[Message, ...]
    references: tuple[str, ...]
    answers: tuple[Answer, ...]
    difference: float


@dataclass(frozen=True)
class Comparison:
    """A candidate against a baseline."""

    baseline: int
    candidate: int
    n_cases: int
    differences: dict[str, Interval]
    forest: Forest
    scatter: Scatter
    worst: tuple[Shown, ...]
    best: tuple[Shown, ...]


def render(suite: Suite, results: Sequence[Result]) -> str:
    """The page as text; `results` share a session, the base first."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    template = environment.from_string(
        files("llmops.evals").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    first = results[0].report
    return template.render(
        first=first,
        reports=[r.report for r in results],
        levels={"each": BOUND_LEVEL, "both": REPORT_LEVEL},
        metrics=[metric.name for metric in suite.metrics],
        primary=suite.metrics[0].name,
        answers=[_answer_row(r) for r in results],
        comparisons=_comparisons(suite, results),
        histograms=_histograms(suite, results),
        cases=_cases_line(suite),
        engine=short_engine(first),
    )


def _cases_line(suite: Suite) -> str:
    groups = len({case.group for case in suite.cases})
    return f"{len(suite.cases)} cases from {groups} groups"


def _answer_row(result: Result) -> JsonDict:
    """What the answers of one system were like."""
    answered = [c for own in result.samples for c in own if c.status == "answered"]
    n = len(answered)
    return {
        "answered": n,
        "errored": sum(map(len, result.samples)) - n,
        "cut": sum(c.finish_reason == "length" for c in answered) / n if n else None,
        "tokens": statistics.fmean(c.n_completion_tokens for c in answered) if n else None,
        "latency": statistics.median(c.latency_s for c in answered) if n else None,
    }


def _comparisons(suite: Suite, results: Sequence[Result]) -> list[Comparison]:
    """The last system against every one before it, the others against the base."""
    last = len(results) - 1
    chosen = [(0, i) for i in range(1, last)] + [(i, last) for i in range(last)]
    found = (_comparison(suite, results, a, b) for a, b in reversed(chosen))
    return [comparison for comparison in found if comparison is not None]


def _comparison(suite: Suite, results: Sequence[Result], a: int, b: int) -> Comparison | None:
    metrics = [metric.name for metric in suite.metrics]
    paired = pair(suite.metrics, suite.cases, results[a].samples, results[b].samples)
    if paired is None:
        return None
    differences = {name: paired.difference(name, BOUND_LEVEL) for name in metrics}
    before, after = (side[metrics[0]].per_case for side in (paired.baseline, paired.candidate))
    shown = _shown(paired, results, (a, b), metrics[0])
    ordered = sorted(shown, key=lambda s: s.difference)
    worst = [s for s in ordered[:N_SHOWN] if s.difference < 0]
    best = [s for s in ordered[: -N_SHOWN - 1 : -1] if s.difference > 0]
    return Comparison(
        baseline=a,
        candidate=b,
        n_cases=len(paired.cases),
        differences=differences,
        forest=forest(differences),
        scatter=scatter(before.tolist(), after.tolist()),
        worst=tuple(worst),
        best=tuple(best),
    )


def _shown(paired: Paired, results: Sequence[Result], indices: tuple[int, int], metric: str) -> list[Shown]:
    completions = [{own[0].case: own[0] for own in results[i].samples} for i in indices]
    sides = [side[metric].per_case for side in (paired.baseline, paired.candidate)]
    shown = []
    for n, case in enumerate(paired.cases):
        answers = tuple(
            Answer(
                i,
                results[i].report.system,
                own[case.digest].text,
                float(scores[n]),
                own[case.digest].finish_reason == "length",
            )
            for i, own, scores in zip(indices, completions, sides, strict=True)
        )
        difference = answers[1].score - answers[0].score
        shown.append(Shown(case.source, case.messages, case.references, answers, difference))
    return shown


def _histograms(suite: Suite, results: Sequence[Result]) -> dict[str, Histogram]:
    """Distributions of per-case scores, all systems in one plot a metric; yes-or-no metrics have none."""
    plots = {}
    graded = [metric.name for metric in suite.metrics if metric.kind != "binary" and metric.unit == "points"]
    for name in graded:
        series = [r.scores[name].per_case.tolist() if name in r.scores else [] for r in results]
        if any(series):
            plots[name] = histogram(series)
    return plots


def short_engine(report: Report) -> str:
    """The engine in a few words."""
    engine = report.engine
    quantized = f", {engine.quantization}" if engine.quantization else ""
    return f"{engine.engine} {engine.version}, {engine.dtype}{quantized} on {engine.device}"
