"""What the outcomes of rated items say to each rule about votes; reads no ratings, knows no campaign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmops.evals.electorate import EVEN, Electorate, win_rate
from llmops.evals.gate.lines import Line, Question, Seen, check_of, decided
from llmops.evals.gate.people import RatingRules
from llmops.ratings.outcomes import Outcome
from llmops.stats import Interval

if TYPE_CHECKING:
    from llmops.evals.gate.judge_rules import JudgeRules
    from llmops.records import Role, Verdict

NOT_COUNTED = "not counted"
"""The method of a check on votes that are not all in, or of a judge that could not check."""


def vote_lines(
    rules: RatingRules, voters: Electorate, level: float, power: float, look: int | None = None
) -> list[Line]:
    """The lines about win rate and both-bad share of 2 rated items or more.

    `look` says which of the declared looks this is (from 0); its bounds spend that look's share of the error.
    """
    from llmops import stats

    note = ""
    if look is not None:
        shares = [items / rules.looks[-1] for items in rules.looks]
        level = stats.look_level(shares, look + 1, 1 - level)
        note = f"; look {look + 1} of {len(rules.looks)}, O'Brien-Fleming"
    question = question_of("votes", "win_rate", rules, (rules.suite or "", level, power))
    rate = win_rate(voters, level)
    seen = Seen(rate, EVEN + rate.estimate, EVEN, rate.method + note)
    lines = [win_rate_said(decided(question, seen))]
    if rules.max_both_bad is not None:
        lines.append(_both_bad(question, rules.max_both_bad, voters.outcomes, note))
    return lines


def _both_bad(question: Question, limit: float, outcomes: Sequence[Outcome], note: str) -> Line:
    from llmops import stats

    share = stats.proportion_interval([o == "both_bad" for o in outcomes], question.level).scaled(100)
    asked = replace(question, kind="at_most", metric="both_bad", threshold=-limit, better="lower")
    line = decided(asked, Seen(share, share.estimate, 0.0, share.method + note))
    numbers = f"both_bad: {share.estimate:.1f} % [{share.low:.1f}, {share.high:.1f}] of the rated items"
    return _said(line, numbers, (f"{limit:g} %", "above"))


def question_of(
    role: Role, metric: str, rules: RatingRules | JudgeRules, about: tuple[str, float, float]
) -> Question:
    """The question about a win rate; `about` is the suite, the level of each bound, and the power."""
    return Question(
        role, rules.win_rate.kind, about[0], metric, rules.win_rate.threshold, *about[1:], rules.min_items
    )


def uncounted(question: Question, verdict: Verdict, counts: tuple[int, int | None], reason: str) -> Line:
    """A line with bounds that say nothing; `counts` are the items rated, and those that are needed."""
    nothing = Interval(0.0, -EVEN, EVEN, question.level, counts[0], 0.0, NOT_COUNTED)
    check = check_of(question, Seen(nothing, EVEN, EVEN, NOT_COUNTED), verdict, counts[1])
    return Line(check, reason)


def win_rate_said(line: Line) -> Line:
    """A line about a win rate with its reason in the words of votes."""
    check = line.check
    span = f"[{check.low:+.1f}, {check.high:+.1f}]"
    numbers = f"{check.metric}: {check.candidate:.1f} %, {check.difference:+.1f} {span} from even"
    return _said(line, numbers, (f"{check.threshold:+g}", "below"))


def _said(line: Line, numbers: str, limit: tuple[str, str]) -> Line:
    """The line with its reason in the words of votes, where the numbers are the reason."""
    check = line.check
    if line.reason is None or not line.is_of_numbers:
        return line
    if check.verdict == "FAIL":
        return replace(line, reason=f"{numbers} lies {limit[1]} {limit[0]}")
    more = "more items are not expected to change that"
    if check.n_needed is not None:
        more = f"about {check.n_needed:,} rated items are needed"
    return replace(line, reason=f"{numbers} does not clear {limit[0]}; {more}")
