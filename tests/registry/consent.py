"""Decisions that ask people: with a number of approvals, and with votes that were really given."""

from __future__ import annotations

from dataclasses import replace

from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import open_campaign, put_items
from llmops.ratings.frozen import freeze_votes
from llmops.records import AdapterRecord, Campaign, Decision, EngineSignature, Item, Message, RatingEvidence
from llmops.registry.adapters import Registry
from tests.evidence import decide

N_ITEMS = 4


def decide_with(
    registry: Registry,
    adapter: AdapterRecord,
    engine: EngineSignature,
    n_approvals: int = 0,
    rated: bool = False,
) -> Decision:
    """The newest decision about `docs`: a PASS that asks for approvals, and counted votes if wanted."""
    return asking(registry, decide(registry, adapter, engine)[0], n_approvals, rated)


def asking(registry: Registry, plain: Decision, n_approvals: int = 0, rated: bool = False) -> Decision:
    """A newer decision that says the same as `plain` and asks people, too."""
    ratings = _votes(registry, plain) if rated else None
    decision = replace(plain, n_approvals=n_approvals, ratings=ratings)
    body = {
        "decision": registry.store.put_record(decision), "public_name": plain.public_name, "verdict": plain.verdict,
        "candidate": plain.candidate,
    }  # fmt: skip
    registry.ledger.append("decision.made", body)
    return decision


def _votes(registry: Registry, decision: Decision) -> RatingEvidence:
    items = [Item((Message("user", f"q{i}"),), (f"a{i}", f"b{i}"), "g", "s") for i in range(N_ITEMS)]
    assert decision.engine is not None
    campaign = Campaign(
        name="docs-gate", purpose="gate", question="Which?", systems=(decision.candidate, decision.baseline),
        reports=decision.reports, dataset=None, base=decision.base, prompt_contract="p" * 64, engine=decision.engine,
        decoding={}, items=put_items(registry.store, items), n_items=N_ITEMS, n_dropped={}, votes_per_item=1,
        created_at="2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    digest = open_campaign(registry.store, registry.ledger, campaign)
    book = RatingBook(registry.store, registry.ledger, campaign)
    for _ in items:
        showing = book.next("ann")
        assert showing is not None
        book.rate(showing.id, "left" if showing.left == 0 else "right")
    votes = freeze_votes(registry.store, book.ratings())
    return RatingEvidence(digest, votes, N_ITEMS, N_ITEMS, N_ITEMS, 1, {"first": N_ITEMS})
