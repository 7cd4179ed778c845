"""Campaigns about two reports, and raters whose every answer the test decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llmops.engines.completions import load_answers
from llmops.evals.suite import load_suite
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import open_campaign, put_items
from llmops.records import Campaign, Item, Report
from tests.evals.conftest import Room, right

NAME = "docs-gate"


def evaluated(room: Room, n_base: int = 40, n_tuned: int = 100) -> list[Report]:
    """Reports (base, candidate) whose answers differ on every case; each is right on its first so many cases."""
    place = {c.messages[-1].content: i for i, c in enumerate(load_suite(room.suite(), room.registry).cases)}

    def script(model: str, prompt: str, nth: int) -> str:
        is_base = model == room.base.model_name
        if place[prompt] < (n_base if is_base else n_tuned):
            return right(prompt) + (" " if is_base else "")
        return f"no idea, says {model}"

    return room.run(room.serve(script))


def campaign_of(
    room: Room, evaluated: list[Report], n_items: int = 50, votes_per_item: int = 1, **changes: object
) -> Campaign:
    """Open a gate campaign that shows the first answers of two reports (base, candidate)."""
    base, tuned = evaluated
    theirs, ours = (load_answers(room.registry.store, report) for report in (base, tuned))
    items = [
        Item(case.messages, (mine.text, other.text), case.group, case.source)
        for (case, other), (_, mine) in zip(theirs, ours, strict=True)
    ][:n_items]
    campaign = Campaign(
        name=NAME, purpose="gate", question="Which is better?", systems=(tuned.model, base.model),
        reports=(tuned.digest(), base.digest()), dataset=None, base=base.base, prompt_contract=tuned.prompt_contract,
        engine=base.engine, decoding=dict(base.decoding), items=put_items(room.registry.store, items),
        n_items=len(items), n_dropped={}, votes_per_item=votes_per_item, created_at="2026-01-01T00:00:00.000Z",
    )  # fmt: skip
    campaign = replace(campaign, **changes)  # type: ignore[arg-type]
    open_campaign(room.registry.store, room.registry.ledger, campaign)
    return campaign


def vote(room: Room, campaign: Campaign, rater: str, wishes: Sequence[str]) -> None:
    """One rater answers item after item: `wishes[i]` (first, second, tie, both_bad, skip) about the campaign's i-th."""
    book = RatingBook(room.registry.store, room.registry.ledger, campaign)
    place = {item.digest: i for i, item in enumerate(book.items())}
    for _ in wishes:
        showing = book.next(rater)
        assert showing is not None
        wish = wishes[place[showing.item.digest]]
        if wish in ("first", "second"):
            wish = "left" if (wish == "first") == (showing.left == 0) else "right"
        book.rate(showing.id, wish)


def wishes(first: int, second: int, tie: int = 0, both_bad: int = 0, skip: int = 0) -> list[str]:
    """So many of each."""
    counts = {"first": first, "second": second, "tie": tie, "both_bad": both_bad, "skip": skip}
    return [name for name, n in counts.items() for _ in range(n)]
