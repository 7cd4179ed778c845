"""Votes in a gate: from one campaign's ratings to checks, and what the gate's file says about them.

A win rate is held against 50 %: a tie, an item on which raters split, and one where both answers are bad count half a
win each. Nothing is counted until the campaign is complete or closed, so that nobody stops when they like the number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from llmops.errors import InvalidEvidence
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import close_campaign
from llmops.ratings.check import verify_ratings
from llmops.ratings.frozen import freeze_votes
from llmops.ratings.outcomes import Outcome, live, outcome, vote_of, votes_by_item
from llmops.records import Campaign, Check, Rating, RatingEvidence, Verdict
from llmops.registry.adapters import Registry
from llmops.schema import short

if TYPE_CHECKING:
    from llmops.evals.review import Evidence
    from llmops.stats import Interval

EVEN = 50.0
"""The win rate, in %, of two systems that people like equally."""
NOT_COUNTED = "not counted"
"""The method of a check on votes that are not all in."""
ENLARGE = "`llmops eval` on more cases, then `llmops feedback open` with its YAML file"


class WinsAsOften(BaseModel):
    """The candidate may win less often than half by less than a margin."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["non_inferior"]
    margin: float = Field(gt=0, lt=50)
    """Points of win rate below 50 %."""

    @property
    def threshold(self) -> float:
        """What the whole interval of win rate - 50 must lie above."""
        return -self.margin


class WinsMore(BaseModel):
    """The candidate must win more than half of the items, by more than `by`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["superior"]
    by: float = Field(default=0.0, ge=0, lt=50)
    """Points of win rate above 50 %."""

    @property
    def threshold(self) -> float:
        """What the whole interval of win rate - 50 must lie above."""
        return self.by


class RatingRules(BaseModel):
    """What a gate asks of human ratings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    campaign: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    """Name of a campaign with purpose gate; its newest one about the two reports that are decided on counts."""
    min_items: int = Field(default=40, ge=2)
    """Fewer rated items decide nothing."""
    win_rate: Annotated[WinsAsOften | WinsMore, Field(discriminator="kind")]
    """What the candidate's win rate must be."""
    max_both_bad: float | None = Field(default=None, gt=0, lt=100)
    """Most of the rated items, in %, on which both answers may be bad; not asked when left out."""


@dataclass(frozen=True)
class Counted:
    """What the votes come to; `evidence` is None while they are not counted."""

    checks: tuple[Check, ...]
    reasons: tuple[str, ...]
    evidence: RatingEvidence | None = None


def count_votes(
    registry: Registry, rules: RatingRules, evidence: Evidence, level: float, power: float
) -> Counted:
    """The checks on the votes about the two reports of `evidence`, whose campaign is closed once they are counted.

    `level` is that of each bound.

    Raises:
        InvalidEvidence: ratings, items or the campaign were altered, or people were shown other answers.
    """
    about = _campaigns(registry, rules.campaign, evidence.reports)
    if not about:
        why = (
            f"no campaign {rules.campaign} about these two reports; run `llmops feedback open` with its YAML file, "
            f"then rate with `llmops feedback ui {rules.campaign}`"
        )
        return _not_counted(rules, level, 0, rules.min_items, why)
    campaign = about[-1]
    rows, n_full = _verified(registry, campaign, evidence)
    votes = votes_by_item(rows)
    if n_full is not None:
        why = (
            f"{n_full} of {campaign.n_items} items rated in campaign {campaign.name}; go on with "
            f"`llmops feedback ui {campaign.name}`, or end it with `llmops feedback close {campaign.name}`"
        )
        return _not_counted(rules, level, n_full, campaign.n_items, why)
    outcomes = [outcome(given) for given in votes.values()]
    if len(outcomes) < 2:
        return _not_counted(rules, level, len(outcomes), rules.min_items, _too_few(rules, len(outcomes)))
    checks = vote_checks(rules, outcomes, level, power)
    if len(about) > 1:
        note = f"; newest of {len(about)} campaigns about these reports"
        checks = tuple(replace(check, method=check.method + note) for check in checks)
    reasons = tuple(_reason(rules, check) for check in checks if check.verdict != "PASS")
    frozen = _frozen(registry, campaign, rows, outcomes)
    # Whoever has seen the result must not change a vote and ask again.
    close_campaign(registry.ledger, campaign)
    return Counted(checks, reasons, frozen)


def vote_checks(
    rules: RatingRules, outcomes: Sequence[Outcome], level: float, power: float
) -> tuple[Check, ...]:
    """What the outcomes of rated items, at least 2, say to each rule; items are taken as independent."""
    from llmops import stats

    losses, wins = ([o == which for o in outcomes] for which in ("second", "first"))
    # wins - losses lies in [-1, 1]; the win rate, where all else counts half, is 1/2 + half of it.
    rate = stats.paired_binary(losses, wins, level).scaled(EVEN)
    found = _decided(rules, rate, rules.win_rate.threshold, power)
    method = f"{rate.method} on wins and losses; tie, both bad and split count half"
    checks = [_check("win_rate", rules.win_rate.kind, found, EVEN, method)]
    if rules.max_both_bad is not None:
        share = stats.proportion_interval([o == "both_bad" for o in outcomes], level).scaled(100)
        # An upper limit is a lower one on the mirrored scale.
        mirrored = replace(share, estimate=-share.estimate, low=-share.high, high=-share.low)
        found = replace(_decided(rules, mirrored, -rules.max_both_bad, power), interval=share)
        checks.append(
            _check("both_bad", "at_most", replace(found, threshold=rules.max_both_bad), 0.0, share.method)
        )
    return tuple(checks)


@dataclass(frozen=True)
class _Decided:
    interval: Interval
    threshold: float
    verdict: Verdict
    n_needed: int | None


def _decided(rules: RatingRules, interval: Interval, threshold: float, power: float) -> _Decided:
    from llmops import stats

    verdict: Verdict = stats.decide_bound(interval, threshold)
    needed = stats.n_needed(interval, threshold, power) if verdict == "INCONCLUSIVE" else None
    if interval.n < rules.min_items:
        verdict, needed = "INCONCLUSIVE", max(rules.min_items, needed or 0)
    return _Decided(interval, threshold, verdict, needed)


def _check(
    metric: str,
    kind: Literal["non_inferior", "superior", "at_most"],
    found: _Decided,
    baseline: float,
    method: str,
) -> Check:
    interval = found.interval
    return Check(
        metric=metric,
        kind=kind,
        threshold=found.threshold,
        candidate=baseline + interval.estimate,
        baseline=baseline,
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        level=interval.level,
        n_cases=interval.n,
        verdict=found.verdict,
        n_needed=found.n_needed,
        method=method,
    )


def _not_counted(rules: RatingRules, level: float, n_rated: int, n_needed: int, why: str) -> Counted:
    """INCONCLUSIVE with bounds that say nothing: no vote shows through before all are in."""
    check = Check(
        metric="win_rate",
        kind=rules.win_rate.kind,
        threshold=rules.win_rate.threshold,
        candidate=EVEN,
        baseline=EVEN,
        difference=0.0,
        low=-EVEN,
        high=EVEN,
        level=level,
        n_cases=n_rated,
        verdict="INCONCLUSIVE",
        n_needed=n_needed,
        method=NOT_COUNTED,
    )
    return Counted((check,), (f"win_rate: {why}",))


def _campaigns(registry: Registry, name: str, reports: tuple[str, str]) -> list[Campaign]:
    """The campaigns of a name that gates may count, about exactly these reports, oldest first."""
    opened = [
        e
        for e in registry.ledger.events("campaign.opened")
        if e.body["name"] == name and e.body["purpose"] == "gate"
    ]
    found = [registry.store.get_record(Campaign, str(e.body["campaign"])) for e in opened]
    return [campaign for campaign in found if campaign.reports == reports]


def _verified(registry: Registry, campaign: Campaign, evidence: Evidence) -> tuple[list[Rating], int | None]:
    """The votes that count; with the number of items that have all theirs while more may come, None when they are in.

    Raises:
        InvalidEvidence: ratings or items were altered, or the items are not the reports' answers.
    """
    from llmops.evals.evidence import prompt_digest

    book = RatingBook(registry.store, registry.ledger, campaign)
    n_full = (
        None if book.settled() else book.standing().n_full
    )  # before the ratings: those it speaks of are then read
    rows = book.ratings()
    verify_ratings(registry.store, registry.ledger, campaign.digest())
    for item in book.items():
        if evidence.answers.get(prompt_digest(item.messages)) != item.answers:
            raise InvalidEvidence(
                f"campaign {campaign.name}: item {short(item.digest)} does not show the answers of the two reports; "
                "open the campaign again with `llmops feedback open`"
            )
    return [row for row in live(rows) if vote_of(row) is not None], n_full


def _frozen(
    registry: Registry, campaign: Campaign, rows: Sequence[Rating], outcomes: Sequence[Outcome]
) -> RatingEvidence:
    counts = Counter(outcomes)
    return RatingEvidence(
        campaign=campaign.digest(),
        votes=freeze_votes(registry.store, rows),
        n_items=campaign.n_items,
        n_rated=len(outcomes),
        n_votes=len(rows),
        n_raters=len({row.rater for row in rows}),
        outcomes={name: counts[name] for name in get_args(Outcome)},
    )


def _reason(rules: RatingRules, check: Check) -> str:
    """Why a check on votes did not pass, in words, and what to do."""
    if check.n_cases < rules.min_items:
        return f"{check.metric}: {_too_few(rules, check.n_cases)}"
    span = f"[{check.low:+.1f}, {check.high:+.1f}]"
    numbers = f"win_rate: {check.candidate:.1f} %, {check.difference:+.1f} {span} from even"
    limit, beyond = f"{check.threshold:+g}", "below"
    if check.kind == "at_most":
        numbers = f"both_bad: {check.difference:.1f} % [{check.low:.1f}, {check.high:.1f}] of the rated items"
        limit, beyond = f"{check.threshold:g} %", "above"
    if check.verdict == "FAIL":
        return f"{numbers} lies {beyond} {limit}"
    if check.n_needed is None:
        return f"{numbers} does not clear {limit}; more items are not expected to change that"
    return f"{numbers} does not clear {limit}; about {check.n_needed:,} rated items are needed: {ENLARGE}"


def _too_few(rules: RatingRules, n_rated: int) -> str:
    return f"{n_rated} rated items decide nothing; the gate asks for {rules.min_items}: {ENLARGE}"
