"""JUnit XML of a session or a decision, as CI servers read it.

The format follows the schema that Jenkins' xUnit plug-in publishes (testsuites > testsuite > properties, testcase >
skipped | error | failure, system-out). A *failure* is a FAIL of the gate; an *error* is what could not be decided or is
no evidence; both turn a build red, and neither is ever left out for a pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from llmops.evals.evidence import Result
from llmops.evals.reports.comparison import Comparison, Evaluated
from llmops.evals.reports.units import check_name, is_open, must_be, shown, shown_difference, shown_interval
from llmops.records import Case, Decision, MetricResult
from llmops.schema import short

N_LISTED = 20  # cases of a group that are named


@dataclass
class _Suite:
    """A testsuite under way."""

    name: str
    timestamp: str
    properties: dict[str, str]
    cases: list[ElementTree.Element] = field(default_factory=list)

    def add(self, name: str, kind: str | None = None, title: str = "", text: str = "") -> None:
        """One testcase; `kind` is failure, error or skipped, None where it passed and `text` is its output."""
        case = ElementTree.Element("testcase", name=_legal(name), classname=_legal(self.name), time="0")
        tag = kind or "system-out"
        child = ElementTree.SubElement(case, tag)
        if kind in ("failure", "error"):
            child.set("type", _legal(title))
            child.set("message", _legal(text.partition("\n")[0]))
        elif kind == "skipped":
            child.set("message", _legal(title))
        child.text = _legal(text)
        self.cases.append(case)

    def element(self) -> ElementTree.Element:
        """The testsuite with its counts."""
        counts = {
            name: sum(case.find(tag) is not None for case in self.cases)
            for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped"))
        }
        suite = ElementTree.Element("testsuite", name=_legal(self.name), tests=str(len(self.cases)), time="0")
        suite.attrib |= {name: str(n) for name, n in counts.items()}
        suite.attrib |= {"timestamp": self.timestamp[:19], "hostname": "llmops"}
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in self.properties.items():
            ElementTree.SubElement(properties, "property", name=name, value=_legal(value))
        suite.extend(self.cases)
        return suite


def of_session(parts: Sequence[Evaluated]) -> str:
    """The XML of a session: a testsuite a suite and system, a testcase a metric and a group of errored cases.

    An evaluation decides nothing: a metric has a value or none (skipped). What is no evidence, or was not answered, is
    an error.

    Args:
        parts: what was evaluated on each suite.
    """
    suites = []
    for part in parts:
        for result in part.results:
            mine = [c for c in part.comparisons if c.candidate is result.report]
            suites.append(_session_suite(part.suite.cases, result, mine))
    return _document("llmops eval", suites)


def of_decision(decision: Decision) -> str:
    """The XML of a decision: a testcase a check, and one that says whether there was evidence to decide on."""
    suite = _Suite(
        f"gate {decision.gate}",
        decision.created_at,
        {
            "verdict": decision.verdict,
            "public_name": decision.public_name,
            "candidate": decision.candidate,
            "baseline": decision.baseline,
            "gate_digest": decision.gate_digest,
            "decision": decision.digest(),
        },
    )
    if decision.verdict == "INVALID":
        suite.add("evidence", "error", "INVALID", "\n".join(decision.reasons) or "the evidence is broken")
    else:
        suite.add("evidence", text="\n".join(decision.reports))
    for check in decision.checks:
        numbers = (
            f"difference {shown_interval(check, check.unit)}, must be {must_be(check)} "
            f"{shown_difference(check.threshold, check.unit)}, {check.n_cases} cases"
        )
        if is_open(check, decision):
            numbers = "not counted yet"
        if check.n_needed is not None:
            numbers += f", about {check.n_needed:,} needed"
        kind = {"PASS": None, "FAIL": "failure"}.get(check.verdict, "error")
        suite.add(check_name(check), kind, check.verdict, numbers)
    return _document("llmops gate", [suite])


def _session_suite(cases: Sequence[Case], result: Result, found: Sequence[Comparison]) -> _Suite:
    report = result.report
    suite = _Suite(
        f"{report.suite}: {report.system}",
        report.created_at,
        {
            "session": report.session,
            "report": report.digest(),
            "suite_digest": report.suite_digest,
            "model": report.model,
            **{f"engine_{name}": str(value) for name, value in report.engine.to_pairs().items()},
        },
    )
    if report.invalid:
        suite.add("evidence", "error", "INVALID", "\n".join(report.invalid))
    else:
        suite.add("evidence", text=f"{report.n_cases} cases, {report.n_errored} errored")
    for error, sources in _errored(cases, result).items():
        listed = "\n".join(sources[:N_LISTED]) + ("\n..." if len(sources) > N_LISTED else "")
        suite.add(
            f"errored: {error}", "error", "errored", f"{len(sources)} cases were not answered\n{listed}"
        )
    for name, value in report.metrics.items():
        suite.add(name, text="\n".join(_metric_text(name, value, found)))
    if not report.metrics:
        suite.add("metrics", "skipped", "fewer than 2 cases were answered")
    return suite


def _errored(cases: Sequence[Case], result: Result) -> dict[str, list[str]]:
    """Where the cases stand that errored, by their error."""
    groups: dict[str, list[str]] = defaultdict(list)
    for case, own in zip(cases, result.samples, strict=True):
        error = next((sample.error for sample in own if sample.status == "errored"), None)
        if error is not None:
            groups[error].append(case.source)
    return dict(groups)


def _metric_text(name: str, value: MetricResult, found: Iterable[Comparison]) -> Iterable[str]:
    low, high = (shown(bound, value.unit, named=False) for bound in (value.low, value.high))
    yield f"{shown(value.value, value.unit)} [{low}, {high}] {value.signature}"
    for comparison in found:
        line = comparison.line(name)
        yield f"against {comparison.baseline.system} ({short(comparison.baseline.model)}): " + shown_interval(
            line.difference, line.unit
        )


def _document(name: str, suites: Sequence[_Suite]) -> str:
    root = ElementTree.Element("testsuites", name=name)
    root.extend(suite.element() for suite in suites)
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _legal(text: str) -> str:
    r"""Text with every character that XML 1.0 cannot hold shown as `?`.

    >>> _legal("a\x00b\ud800c 😀")
    'a?b?c 😀'
    """
    return "".join(c if c in "\t\n\r" or _is_legal(ord(c)) else "?" for c in text)


def _is_legal(point: int) -> bool:
    return 0x20 <= point <= 0xD7FF or 0xE000 <= point <= 0xFFFD or point >= 0x10000
