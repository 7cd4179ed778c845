"""Campaigns: stored with their items, found by name, open until they are closed."""

from __future__ import annotations

import json
from collections.abc import Sequence

from sqlalchemy import Connection, select

from llmops.db import writing
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Ledger, append_event
from llmops.records import Campaign, Dropped, Item, Message
from llmops.schema import JsonDict, canonical_json, short
from llmops.store import Store
from llmops.tables import events

ITEMS_FILE = "items.jsonl"
DROPPED_FILE = "dropped.jsonl"


def put_items(store: Store, items: Sequence[Item], dropped: Sequence[Dropped] = ()) -> str:
    """Freeze items in their order, and what became no item; returns the digest of the stored files (kind `items`).

    Raises:
        ValueError: two items have one prompt and the same answers, so that votes could not be told apart.
    """
    if len({item.digest for item in items}) != len(items):
        raise ValueError("items: one stands there twice")
    lost = (canonical_json({"source": d.source, "reason": d.reason}) for d in dropped)
    files = {
        ITEMS_FILE: b"".join(item_line(item) + b"\n" for item in items),
        DROPPED_FILE: b"".join(line + b"\n" for line in lost),
    }
    return store.put_files("items", files)


def open_campaign(store: Store, ledger: Ledger, campaign: Campaign) -> str:
    """Store a campaign and tell the ledger; returns its digest. From now on its items can be rated."""
    digest = store.put_record(campaign)
    body = {"campaign": digest, "name": campaign.name, "purpose": campaign.purpose, "items": campaign.items}
    ledger.append("campaign.opened", body)
    return digest


def close_campaign(ledger: Ledger, campaign: Campaign) -> None:
    """Take no more ratings for a campaign; closing twice changes nothing."""
    digest = campaign.digest()
    with writing(ledger.engine) as connection:
        if not closed_in(connection, digest):
            append_event(connection, "campaign.closed", {"campaign": digest, "name": campaign.name})


def is_closed(ledger: Ledger, digest: str) -> bool:
    """Whether the campaign takes no more ratings."""
    with ledger.engine.connect() as connection:
        return closed_in(connection, digest)


def closed_in(connection: Connection, digest: str) -> bool:
    """Whether the campaign takes no more ratings, as this transaction sees it."""
    bodies = connection.execute(select(events.c.body).where(events.c.kind == "campaign.closed")).scalars()
    return any(json.loads(body)["campaign"] == digest for body in bodies)


def campaigns(store: Store, ledger: Ledger) -> list[Campaign]:
    """All campaigns, oldest first.

    Raises:
        InvalidEvidence: a record is gone from the store, or altered.
    """
    events = ledger.events("campaign.opened")
    return [store.get_record(Campaign, str(e.body["campaign"])) for e in events]


def find_campaign(store: Store, ledger: Ledger, reference: str) -> Campaign:
    """The newest campaign of a name, or the one whose digest begins with `reference` (6 digits or more).

    Raises:
        BadRequest: none answers to it.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    events = list(reversed(ledger.events("campaign.opened")))
    named = [e for e in events if e.body["name"] == reference]
    if not named and len(reference) >= 6:
        named = [e for e in events if str(e.body["campaign"]).startswith(reference)]
    if not named:
        raise BadRequest(f"campaign {reference}: not opened; run `llmops feedback open` with its YAML file")
    return store.get_record(Campaign, str(named[0].body["campaign"]))


def load_items(store: Store, campaign: Campaign) -> list[Item]:
    """A campaign's frozen items in their order, gold ones and repeats too, after every byte was compared.

    Those that were captured or typed are not among them: their texts lie in the database (`llmops.ratings.added`).

    Raises:
        InvalidEvidence: the files are gone or altered.
    """
    folder = store.verify("items", campaign.items)
    items = [item_of_line(line) for line in (folder / ITEMS_FILE).read_bytes().splitlines()]
    n_said = campaign.n_items + campaign.n_gold + campaign.n_repeats
    if not is_added_to(campaign) and len(items) != n_said:
        raise InvalidEvidence(
            f"campaign {campaign.name}: {short(campaign.items)} holds {len(items):,} items, its record says "
            f"{n_said:,}; open it again"
        )
    return items


def is_added_to(campaign: Campaign) -> bool:
    """Whether a campaign's items lie in the database, where they can be deleted and more may join."""
    return campaign.origin in ("captures", "feedback", "typed")


def item_line(item: Item) -> bytes:
    """The one line of an item, without its newline; what it does not have is left out."""
    line: JsonDict = {
        "messages": [m.to_turn() for m in item.messages],
        "answers": list(item.answers),
        "group": item.group,
        "source": item.source,
    }
    for name in ("systems", "responses"):
        if getattr(item, name):
            line[name] = list(getattr(item, name))
    for name in ("known", "repeat_of", "votes"):
        if getattr(item, name) is not None:
            line[name] = getattr(item, name)
    return canonical_json(line)


def item_of_line(line: bytes | str) -> Item:
    """The item that `item_line` wrote."""
    data = json.loads(line)
    data["messages"] = tuple(Message.of_turn(m) for m in data["messages"])
    for name in ("answers", "systems", "responses"):
        data[name] = tuple(data.get(name, ()))
    return Item(**data)
