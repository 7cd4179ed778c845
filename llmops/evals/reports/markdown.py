"""Summaries in GitHub-flavoured Markdown: of a session, of a decision, of one comparison.

Models' texts stand in fenced blocks that no text can close, everything else in table cells with what Markdown or HTML
would read escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from llmops.evals.reports.comparison import CaseLine, Comparison, Evaluated, MetricLine
from llmops.evals.reports.stored import Held
from llmops.evals.reports.units import check_name, is_open, must_be, shown, shown_difference, shown_interval
from llmops.records import Case, Completion, Decision, MetricResult, Report
from llmops.schema import short

MAX_TEXT = 1000  # characters of one text that are shown
MARKS = {"+": "better", "-": "**worse**", "0": ""}
VERDICT_MARKS = {"PASS": "✅", "FAIL": "❌", "INCONCLUSIVE": "❔", "INVALID": "⛔"}


def of_session(parts: Sequence[Evaluated]) -> str:
    """The summary of a session: for each suite its reports' values, paired differences, and the worst cases folded.

    Args:
        parts: what was evaluated on each suite.
    """
    blocks: list[str] = []
    for part in parts:
        reports = [result.report for result in part.results]
        blocks += [f"## {cell(reports[0].suite)}", *_faults(reports), _systems_table(reports)]
        for i, comparison in enumerate(part.comparisons):
            blocks += of_comparison(comparison, level=3, with_cases=i == 0)  # the page has all of them
        blocks.append(_session_line(reports[0]))
    return "\n\n".join(blocks) + "\n"


def of_held(found: Sequence[Held]) -> str:
    """Comparisons of stored reports, with what makes one no evidence on top of it."""
    blocks: list[str] = []
    for held in found:
        title, *rest = of_comparison(held.comparison)
        lines = [f"- ⛔ **INVALID** {cell(fault)}" for fault in held.faults]
        lines += [f"- {cell(warning)}" for warning in held.warnings]
        blocks += [
            title,
            f"Suite {cell(held.comparison.candidate.suite)}.",
            *(["\n".join(lines)] if lines else []),
        ]
        blocks += rest
    return "\n\n".join(blocks) + "\n"


def of_comparison(found: Comparison, level: int = 2, with_cases: bool = True) -> list[str]:
    """A comparison in blocks: a table of differences, one of slices, worst and best cases folded."""
    title = f"{'#' * level} {cell(found.candidate.system)} against {cell(found.baseline.system)}"
    count = f"Paired over {found.n_cases} cases"
    if found.n_left_out:
        count += f"; {found.n_left_out} that one of both did not answer are left out"
    blocks = [title, f"{count}. Each bound is one-sided at 95 %.", _differences_table(found.metrics)]
    if found.slices:
        blocks.append(fold("By slice", _slices_table(found)))
    for name, lines in (("Worst regressions", found.worst), ("Best gains", found.best)):
        if lines and with_cases:
            blocks.append(fold(f"{name} by {cell(found.by)} ({len(lines)})", *_cases(lines, found)))
    return blocks


def of_decision(decision: Decision, session: str | None = None) -> str:
    """The summary of a decision: its verdict, every check, and the session it was made on beneath.

    Args:
        decision: what the gate said.
        session: the summary of its session, where that is still there.
    """
    mark = VERDICT_MARKS[decision.verdict]
    blocks = [
        f"## {mark} {decision.verdict}: {cell(decision.public_name)}, gate {cell(decision.gate)}",
        f"`{short(decision.candidate)}` against `{short(decision.baseline)}`, decision "
        f"`{short(decision.digest())}`, gate file `{short(decision.gate_digest)}`.",
    ]
    if decision.checks:
        blocks.append(_checks_table(decision))
    if decision.reasons:
        blocks.append("\n".join(f"- {cell(reason)}" for reason in decision.reasons))
    if decision.n_approvals:
        blocks.append(f"Approvals asked for before a promotion: {decision.n_approvals}.")
    text = "\n\n".join(blocks) + "\n"
    return text if session is None else f"{text}\n{session}"


def cell(text: str) -> str:
    r"""Text in a table's cell or a line: no character of it is markup.

    >>> print(cell("a|b <i>\nc_d* [x]"))
    a\|b &lt;i&gt; c\_d\* \[x\]
    """
    flat = " ".join(text.split())
    flat = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    flat = re.sub(
        r"(?<!\w)@(?=\w)", "@\u200b", flat
    )  # nobody is called to a summary; no backslash prevents that
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", flat)


def fence(text: str) -> str:
    """Text in a block that is longer fenced than anything in it, cut where it is too long for a summary.

    >>> fence("a ``` b").splitlines()[0]
    '````text'
    """
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}\n... ({len(text):,} characters in all)"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    bar = "`" * max(3, longest + 1)
    return f"{bar}text\n{text}\n{bar}"


def fold(summary: str, *blocks: str) -> str:
    """Blocks that a reader opens."""
    return "\n\n".join([f"<details><summary>{summary}</summary>", *blocks, "</details>"])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells as they are, numbers to the right."""
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _faults(reports: Sequence[Report]) -> list[str]:
    lines = [f"- {cell(r.system)}: {cell(reason)}" for r in reports for reason in r.invalid]
    return ["⛔ **INVALID: no evidence**", "\n".join(lines)] if lines else []


def _systems_table(reports: Sequence[Report]) -> str:
    names = list(dict.fromkeys(name for report in reports for name in report.metrics))
    rows = [
        [
            cell(report.system),
            f"{report.n_cases - report.n_errored} of {report.n_cases}",
            *(_value(report.metrics.get(name)) for name in names),
        ]
        for report in reports
    ]
    return table(["system", "answered", *map(cell, names)], rows)


def _value(found: MetricResult | None) -> str:
    if found is None:
        return "–"
    low, high = (shown(bound, found.unit, named=False) for bound in (found.low, found.high))
    return f"{shown(found.value, found.unit)} [{low}, {high}]"


def _differences_table(lines: Sequence[MetricLine]) -> str:
    rows = [
        [
            cell(line.metric) + (" (lower is better)" if line.better == "lower" else ""),
            shown(line.baseline, line.unit),
            shown(line.candidate, line.unit),
            shown_interval(line.difference, line.unit),
            f"{line.n_better} / {line.n_worse} / {line.n_equal}",
            f"in doubt: {cell(line.difference.doubt)}" if line.difference.doubt else MARKS[line.side],
        ]
        for line in lines
    ]
    header = ["metric", "baseline", "candidate", "difference", "better / worse / equal cases", ""]
    return table(header, rows)


def _slices_table(found: Comparison) -> str:
    names = [line.metric for line in found.metrics]
    rows = []
    for part in found.slices:
        by_name = {line.metric: line for line in part.metrics}
        cells = [
            f"{shown_interval(by_name[name].difference, by_name[name].unit)} {MARKS[by_name[name].side]}".rstrip()
            if name in by_name
            else "–"
            for name in names
        ]
        rows.append([f"{cell(part.about)}: {cell(part.value)}", str(part.n_cases), *cells])
    return table(["slice", "cases", *map(cell, names)], rows)


def _cases(lines: Sequence[CaseLine], found: Comparison) -> Iterable[str]:
    unit = found.line(found.by).unit
    for line in lines:
        before, after = (shown(score, unit) for score in line.scores)
        yield f"**{cell(line.case.source)}**: {before} → {after}"
        yield fence(_asked(line.case))
        if line.case.references:
            yield "Reference:"
            yield fence("\n---\n".join(line.case.references))
        for report, samples in ((found.baseline, line.baseline), (found.candidate, line.candidate)):
            more = f" (first of {len(samples)} samples)" if len(samples) > 1 else ""
            yield f"{cell(report.system)}{more}:"
            yield fence(said(samples[0]))


def said(sample: Completion) -> str:
    """A completion as text: earlier answers, the last one, and the calls it makes."""
    calls = [f"→ {call.name}({call.arguments})" for call in sample.tool_calls]
    return "\n---\n".join([*sample.earlier, *([sample.text] if sample.text or not calls else []), *calls])


def _asked(case: Case) -> str:
    turns = [f"{m.role}: {m.content}" for m in case.messages]
    return "\n\n".join([*turns, *(f"user: {text}" for text in case.follow_ups)])


def _checks_table(decision: Decision) -> str:
    rows = []
    for check in decision.checks:
        candidate, difference = shown(check.candidate, check.unit), shown_interval(check, check.unit)
        if is_open(check, decision):
            candidate, difference = "?", "not counted yet"
        needed = f" of {check.n_needed:,} needed" if check.n_needed else ""
        rows.append(
            [
                cell(check_name(check)),
                shown(check.baseline, check.unit),
                candidate,
                difference,
                f"{must_be(check)} {shown_difference(check.threshold, check.unit)}",
                f"{check.n_cases:,}{needed}",
                f"{VERDICT_MARKS[check.verdict]} {check.verdict}",
            ]
        )
    return table(["check", "baseline", "candidate", "difference", "must be", "cases", "verdict"], rows)


def _session_line(report: Report) -> str:
    engine = report.engine
    return (
        f"Session `{report.session}`, suite `{short(report.suite_digest)}`, {engine.engine} {engine.version} "
        f"{engine.dtype} on {engine.device}. Brackets after values are two-sided 90 % intervals."
    )
