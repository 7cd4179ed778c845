"""Votes in a gate: from one campaign's ratings to checks.

A win rate is held against 50 %: a tie, an item on which raters split, and one where both answers are bad count half a
win each. Nothing is counted until the campaign is complete or closed, so that nobody stops when they like the number;
or at the looks that the gate declared, whose bounds are wider for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from llmops.errors import InvalidEvidence
from llmops.evals.ballots import campaigns_about, electorate, frozen, verify_items
from llmops.evals.electorate import Electorate
from llmops.evals.gate.config import GateConfig
from llmops.evals.gate.lines import Line
from llmops.evals.gate.people import RatingRules
from llmops.evals.gate.vote_checks import question_of, uncounted, vote_lines
from llmops.evals.unseen import require_unseen
from llmops.ratings.agreement import krippendorff_alpha
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import close_campaign
from llmops.ratings.looks import reached
from llmops.ratings.outcomes import live, vote_of
from llmops.records import Campaign, Rating, RatingEvidence
from llmops.registry.adapters import Registry

if TYPE_CHECKING:
    from llmops.evals.review import Evidence

ENLARGE = "`llmops eval` on more cases, then `llmops feedback open` with its YAML file"


@dataclass(frozen=True)
class Counted:
    """What the votes come to; `evidence` is None while they are not counted."""

    lines: list[Line]
    evidence: RatingEvidence | None = None


@dataclass(frozen=True)
class _Ballot:
    """The ratings that count now, and at which look (from 0; None when all votes are in or no looks are declared)."""

    rows: tuple[Rating, ...]
    look: int | None = None


def count_votes(registry: Registry, gate: GateConfig, evidence: Evidence) -> Counted:
    """The checks on the votes about the two reports of `evidence`, whose campaign is closed once they decide.

    Raises:
        InvalidEvidence: ratings, items or the campaign were altered, people were shown other answers, too few people
            voted, or they agree too little.
    """
    rules = gate.ratings
    if rules is None:
        raise ValueError(f"gate {gate.name} asks for no votes")
    about = campaigns_about(registry, rules.campaign, evidence.reports)
    if not about:
        why = (
            f"no campaign {rules.campaign} about these two reports; run `llmops feedback open` with its YAML file, "
            f"then rate with `llmops feedback ui {rules.campaign}`"
        )
        return _not_counted(gate, rules, 0, rules.min_items, why)
    campaign = about[-1]
    book = RatingBook(registry.store, registry.ledger, campaign)
    # Before the ratings: those it speaks of are then read.
    n_full = None if book.settled() else book.standing().n_full
    verify_items(registry, book, evidence.answers)
    require_unseen(registry, campaign)
    ballot = _ballot(rules, book, n_full)
    if isinstance(ballot, str):
        return _not_counted(gate, rules, n_full or 0, _next_look(rules, campaign, n_full or 0), ballot)
    voters = electorate(registry, book, ballot.rows)
    if len(voters.outcomes) < 2:
        return _not_counted(
            gate, rules, len(voters.outcomes), rules.min_items, _too_few(rules, len(voters.outcomes))
        )
    _require_agreement(rules, voters)
    lines = [
        _with_advice(rules, line) for line in vote_lines(rules, voters, gate.level, gate.power, ballot.look)
    ]
    notes = [f"newest of {len(about)} campaigns about these reports"] if len(about) > 1 else []
    if left_out := book.withdrawn():
        notes.append(f"without the votes of {len(left_out)} rater(s) who withdrew")
    note = "".join(f"; {note}" for note in notes)
    lines = [replace(line, check=replace(line.check, method=line.check.method + note)) for line in lines]
    counted = Counted(lines, frozen(registry, campaign, ballot.rows, voters.outcomes))
    # Whoever has seen the result must not change a vote and ask again; between looks people go on.
    if n_full is None or _is_over(rules, ballot, lines):
        close_campaign(registry.ledger, campaign)
    return counted


def _ballot(rules: RatingRules, book: RatingBook, n_full: int | None) -> _Ballot | str:
    """What may be counted now, or why nothing may; `n_full` is None when no more votes come."""
    campaign, rows = book.campaign, book.evidence()
    if rules.looks:
        look = reached(rows, rules.looks, {item.digest: book.votes_of(item) for item in book.items()})
        if look is not None:
            return _Ballot(look.rows, look.place)
        if n_full is None:
            return f"ended before the first look; the gate looks at {rules.looks[0]} rated items: {ENLARGE}"
        return (
            f"{n_full} of {rules.looks[0]} items rated before the first look in campaign {campaign.name}; go on with "
            f"`llmops feedback ui {campaign.name}`"
        )
    if n_full is not None:
        return (
            f"{n_full} of {campaign.n_items} items rated in campaign {campaign.name}; go on with "
            f"`llmops feedback ui {campaign.name}`, or end it with `llmops feedback close {campaign.name}`"
        )
    return _Ballot(tuple(row for row in live(rows) if vote_of(row) is not None))


def _next_look(rules: RatingRules, campaign: Campaign, n_full: int) -> int:
    return next((look for look in rules.looks if look > n_full), campaign.n_items)


def _is_over(rules: RatingRules, ballot: _Ballot, lines: Sequence[Line]) -> bool:
    last = ballot.look is None or ballot.look == len(rules.looks) - 1
    return last or all(line.check.verdict != "INCONCLUSIVE" for line in lines)


def _require_agreement(rules: RatingRules, voters: Electorate) -> None:
    """Refuse votes of too few people, or of people who agree too little to have been asked the same thing.

    Raises:
        InvalidEvidence: says which; agreement that cannot be computed is not agreement.
    """
    if voters.n_raters < rules.min_raters:
        raise InvalidEvidence(
            f"votes: {voters.n_raters} rater, the gate asks for {rules.min_raters}; one person's taste is no evidence "
            "about people"
            if voters.n_raters == 1
            else f"votes: {voters.n_raters} raters, the gate asks for {rules.min_raters}"
        )
    asked = rules.agreement
    if asked is None:
        return
    found = krippendorff_alpha([[vote for _, vote in given] for given in voters.votes])
    if found.n_items < asked.min_items:
        raise InvalidEvidence(
            f"agreement: could not be computed: {found.n_items} items have two votes, the gate asks for "
            f"{asked.min_items}; open the campaign with votes_per_item 2 or more"
        )
    if found.alpha is None:
        raise InvalidEvidence(
            f"agreement: could not be computed: all votes on the {found.n_items} items with two votes are one answer, "
            "which chance would give as well"
        )
    if found.alpha < asked.at_least:
        raise InvalidEvidence(
            f"agreement: Krippendorff's alpha is {found.alpha:.2f} over {found.n_items} items with two votes, below "
            f"{asked.at_least:g}: raters were not answering one question; mend the rubric and open the campaign again"
        )


def _with_advice(rules: RatingRules, line: Line) -> Line:
    """A line whose reason says what to do for more votes."""
    check = line.check
    if line.reason is None or check.verdict != "INCONCLUSIVE":
        return line
    if check.n_cases < rules.min_items:
        return replace(line, reason=f"{check.metric}: {_too_few(rules, check.n_cases)}")
    return replace(line, reason=f"{line.reason}: {ENLARGE}") if check.n_needed else line


def _not_counted(gate: GateConfig, rules: RatingRules, n_rated: int, n_needed: int, why: str) -> Counted:
    """INCONCLUSIVE with bounds that say nothing: no vote shows through before it may."""
    question = question_of("votes", "win_rate", rules, (rules.suite or "", gate.level, gate.power))
    return Counted([uncounted(question, "INCONCLUSIVE", (n_rated, n_needed), f"win_rate: {why}")])


def _too_few(rules: RatingRules, n_rated: int) -> str:
    return f"{n_rated} rated items decide nothing; the gate asks for {rules.min_items}: {ENLARGE}"
