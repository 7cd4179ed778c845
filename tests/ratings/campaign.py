"""A campaign over made-up items, as the stages open one, for tests of what people answer."""

from __future__ import annotations

from typing import Any, Literal

from llmops.ledger import Ledger
from llmops.ratings.book import RatingBook
from llmops.ratings.campaigns import open_campaign, put_items
from llmops.records import Campaign, EngineSignature, Item, Message
from llmops.settings import Workspace, now
from llmops.store import Store

ENGINE = EngineSignature("transformers", "5.19.0", "float32", None, "cpu", "b" * 64, 512)


def item(i: int) -> Item:
    """An item whose first answer says so."""
    return Item(
        (Message("user", f"question {i}"),), (f"first {i}", f"second {i}"), f"g{i}", f"rows.jsonl:{i}"
    )


def make_campaign(
    workspace: Workspace,
    items: list[Item],
    purpose: Literal["gate", "train"] = "train",
    votes_per_item: int = 1,
    name: str = "docs",
    dataset: str | None = None,
    **more: Any,
) -> Campaign:
    """Open a campaign over these items; `more` are further fields of the record."""
    store = Store.of(workspace)
    single = more.get("kind", "compare") != "compare"
    campaign = Campaign(
        name=name, purpose=purpose, question="Which is better?",
        systems=more.pop("systems", ("a" * 64,) if single else ("a" * 64, "b" * 64)),
        reports=("c" * 64, "d" * 64) if purpose == "gate" else None, dataset=dataset, base="b" * 64,
        prompt_contract="e" * 64, engine=ENGINE, decoding={"temperature": 0.8}, items=put_items(store, items),
        n_items=sum(i.counts for i in items), n_dropped={}, votes_per_item=votes_per_item, created_at=now(), **more,
    )  # fmt: skip
    open_campaign(store, Ledger.of(workspace), campaign)
    return campaign


def make_book(workspace: Workspace, n_items: int = 3, votes_per_item: int = 1) -> RatingBook:
    """The book of a campaign with items 0, 1, 2 ..."""
    campaign = make_campaign(workspace, [item(i) for i in range(n_items)], votes_per_item=votes_per_item)
    return book_of(workspace, campaign)


def book_of(workspace: Workspace, campaign: Campaign) -> RatingBook:
    """A book as a process of its own would open it."""
    return RatingBook(Store.of(workspace), Ledger.of(workspace), campaign)


def vote(book: RatingBook, rater: str, says: str) -> str:
    """Rate the next item so that it says first, second, tie, both_bad or skip; returns the item's digest."""
    showing = book.next(rater)
    assert showing is not None
    choice = says
    if says in ("first", "second"):
        choice = "left" if (showing.left == 0) == (says == "first") else "right"
    book.rate(showing.id, choice)
    return showing.item.digest
