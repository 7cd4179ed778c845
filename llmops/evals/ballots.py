"""A campaign's votes as evidence, for gates and for judges: found, checked against ledger and reports, and frozen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

from llmops.errors import InvalidEvidence
from llmops.evals.electorate import Electorate
from llmops.evals.evidence import prompt_digest
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import campaigns
from llmops.ratings.check import verify_ratings
from llmops.ratings.frozen import freeze_votes
from llmops.ratings.outcomes import Outcome, Vote, vote_of
from llmops.records import Campaign, Rating, RatingEvidence, Report
from llmops.registry.adapters import Registry
from llmops.schema import short


def campaigns_about(registry: Registry, name: str, reports: tuple[str, ...]) -> list[Campaign]:
    """The campaigns of a name that gates may count, about exactly these reports (digests), oldest first."""
    return [
        campaign
        for campaign in campaigns(registry.store, registry.ledger)
        if (campaign.name, campaign.purpose, campaign.reports) == (name, "gate", reports)
    ]


def verify_items(registry: Registry, book: RatingBook, answers: Mapping[str, tuple[str, str]]) -> None:
    """Compare a campaign's ratings with the ledger, and its items with the reports' answers, by digest of the prompt.

    Raises:
        InvalidEvidence: ratings or items were altered, or the items are not the reports' answers.
    """
    campaign = book.campaign
    verify_ratings(registry.store, registry.ledger, campaign.digest())
    for item in book.items():
        if answers.get(prompt_digest(item.messages)) != item.answers:
            raise InvalidEvidence(
                f"campaign {campaign.name}: item {short(item.digest)} does not show the answers of the two reports; "
                "open the campaign again with `llmops feedback open`"
            )


def electorate(registry: Registry, book: RatingBook, rows: Iterable[Rating]) -> Electorate:
    """The votes among ratings of a campaign about two reports, item by item.

    Items of a group are alike where the suite of the reports says so.
    """
    votes = cast_by_item(rows)
    of = [registry.store.get_record(Report, digest).cluster for digest in book.campaign.reports or ()]
    groups = {item.digest: item.group for item in book.items()}
    return Electorate.of(list(votes.values()), [groups[item] for item in votes] if any(of) else None)


def cast_by_item(rows: Iterable[Rating]) -> dict[str, list[tuple[str, Vote]]]:
    """Who voted what on each item (a digest), of ratings that are votes."""
    votes: dict[str, list[tuple[str, Vote]]] = {}
    for row in rows:
        vote = vote_of(row)
        if vote is not None:
            votes.setdefault(row.item, []).append((row.rater, vote))
    return votes


def frozen(
    registry: Registry, campaign: Campaign, rows: Sequence[Rating], outcomes: Iterable[Outcome]
) -> RatingEvidence:
    """The votes that count, kept for a decision; `outcomes` holds one of each rated item."""
    counts = Counter(outcomes)
    return RatingEvidence(
        campaign=campaign.digest(),
        votes=freeze_votes(registry.store, rows),
        n_items=campaign.n_items,
        n_rated=counts.total(),
        n_votes=len(rows),
        n_raters=len({row.rater for row in rows}),
        outcomes={name: counts[name] for name in get_args(Outcome)},
    )
