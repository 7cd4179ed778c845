"""A decision in one paragraph, for who has to answer for it: what was compared, what was found, what is missing."""

from __future__ import annotations

from collections.abc import Callable

from llmops.evals.gate.judges import JUDGE_SAID
from llmops.evals.gate.lines import label
from llmops.evals.gate.vote_checks import NOT_COUNTED
from llmops.records import Check, Decision
from llmops.schema import short

_VERDICTS = {
    "PASS": "It may be released",
    "FAIL": "It must not be released",
    "INCONCLUSIVE": "It may not be released yet: the evidence does not decide",
    "INVALID": "Nothing was decided, because the evidence is broken",
}
_ROLES = {
    "primary": "the goal",
    "guardrail": "a guardrail",
    "any_improved": "one of those of which one must be better",
    "slice": "a guardrail on a part of the cases",
    "exploratory": "a search for harm",
    "gap": "a limit on the gap between groups",
    "pair": "a limit on pairs that must be answered alike",
    "votes": "people's votes",
    "judge": "a model's judgement",
}


def explain(decision: Decision, name_of: Callable[[str], str], n_approved: int = 0) -> str:
    """The decision as one paragraph.

    Args:
        decision: what the gate said.
        name_of: what a reader calls the model with a digest.
        n_approved: how many people have approved it.
    """
    against = (
        "the base model"
        if decision.baseline == decision.base
        else f"the released {name_of(decision.baseline)}"
    )
    if decision.baseline not in (decision.base, decision.champion):
        against = name_of(decision.baseline)
    first = (
        f"{decision.verdict}: gate {decision.gate} compared {name_of(decision.candidate)} with {against} for "
        f"the name {decision.public_name}, on {decision.created_at[:10]}. {_VERDICTS[decision.verdict]}"
    )
    parts = [f"{first}{_because(decision)}."]
    parts += [f"{_sentence(check, decision)}." for check in decision.checks]
    parts += [f"{said[0].upper()}{said[1:]}." for said in decision.reasons if said.startswith(JUDGE_SAID)]
    parts += _people(decision, n_approved)
    parts.append(_how_sure(decision))
    return " ".join(parts)


def _because(decision: Decision) -> str:
    if decision.verdict == "PASS":
        return (
            f": all {len(decision.checks)} checks hold"
            if len(decision.checks) > 1
            else ": its one check holds"
        )
    return f": {decision.reasons[0]}" if decision.verdict == "INVALID" and decision.reasons else ""


def _sentence(check: Check, decision: Decision) -> str:
    name = label(check.suite, check.metric, check.group)
    name = f"{name[0].upper()}{name[1:]} ({_ROLES[check.role]})"
    if check.role == "votes" and decision.ratings is None:
        return f"{name}: not counted yet, {check.n_cases} of {check.n_needed} items are rated"
    if check.role == "judge" and check.method == NOT_COUNTED:
        return f"{name}: {'could not check' if check.verdict == 'INVALID' else 'not calibrated yet'}"
    share = round(200 * check.level - 100, 1)
    span = f"{share:g} % interval {_number(check.low)} to {_number(check.high)}"
    if check.kind == "at_most":
        found = f"is {_number(check.difference)}{_unit(check)} ({span}) and must be below {check.threshold:g}"
    else:
        found = (
            f"went from {_number(check.baseline)} to {_number(check.candidate)}{_unit(check)}, by "
            f"{_number(check.difference, sign=True)} ({span}), and {_must(check)}"
        )
    return f"{name} {found}, over {check.n_cases:,} {_noun(check)}: {check.verdict}{_needed(check)}"


def _must(check: Check) -> str:
    worse = "fall" if check.better == "higher" else "rise"
    if check.kind == "superior":
        direction = "rise" if check.better == "higher" else "fall"
        return f"must {direction} by more than {_number(abs(check.threshold))}"
    if check.kind == "not_worse":
        return f"must not be shown to {worse} by more than {_number(abs(check.threshold))}"
    return f"may {worse} by less than {_number(abs(check.threshold))}"


def _needed(check: Check) -> str:
    if check.verdict == "INCONCLUSIVE" and check.n_needed:
        return f", about {check.n_needed:,} {_noun(check)} are needed"
    return ""


def _noun(check: Check) -> str:
    return {"votes": "rated items", "pair": "pairs"}.get(check.role, "cases")


def _unit(check: Check) -> str:
    if check.role == "votes":
        return " %"
    return "" if check.unit == "points" else f" {check.unit}"


def _number(value: float, sign: bool = False) -> str:
    text = f"{value:.1f}" if abs(value) >= 1 or value == 0 else f"{value:.2g}"
    return f"+{text}" if sign and value > 0 else text


def _people(decision: Decision, n_approved: int) -> list[str]:
    said = []
    if decision.ratings is not None:
        votes = decision.ratings
        who = "1 person" if votes.n_raters == 1 else f"{votes.n_raters} people"
        said.append(f"{who} gave {votes.n_votes:,} votes on {votes.n_rated:,} of {votes.n_items:,} items.")
    if decision.n_approvals:
        said.append(f"{n_approved} of {decision.n_approvals} approvals are given.")
    return said


def _how_sure(decision: Decision) -> str:
    declared = "was never declared"
    if decision.gate_declared is not None:
        declared = f"was declared in the ledger (event {decision.gate_declared})"
    sure = f"The gate's file (sha256 {short(decision.gate_digest)}) {declared}"
    levels = {check.level for check in decision.checks if check.role != "votes"}
    if not levels:
        return f"{sure}."
    wrong = 100 * (1 - min(levels))
    return (
        f"{sure}; each bound of an interval is wrong for at most {wrong:.3g} % of samples, and a release needs every "
        "check to hold."
    )
