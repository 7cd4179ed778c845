"""Items whose texts lie in the database: captured and typed ones, which their owner may have deleted.

The ledger holds each one's digest, so that an altered text is found; after a deletion the digest alone remains.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from llmops.db import events, item_texts, writing
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Ledger, append_event
from llmops.ratings.campaigns import item_line, item_of_line
from llmops.records import Campaign, Item, Message, Pins
from llmops.schema import short
from llmops.settings import now


@dataclass(frozen=True)
class Owned:
    """An item and whose texts it shows: `owner` is what a deletion names (a user's id), None for nobody's."""

    item: Item
    owner: str | None = None


def add_items(ledger: Ledger, campaign: Campaign, items: Iterable[Owned]) -> list[Item]:
    """Put more items before a campaign's raters; those that it has already are passed over. Returns the new ones.

    Raises:
        StoreError: the database did not take them.
    """
    with writing(ledger.engine) as connection:
        return add_in(connection, campaign, items)


def add_in(connection: Connection, campaign: Campaign, items: Iterable[Owned]) -> list[Item]:
    """`add_items` inside a transaction of `db.writing`."""
    digest = campaign.digest()
    there = set(
        connection.execute(select(item_texts.c.item).where(item_texts.c.campaign == digest)).scalars()
    )
    last = connection.scalar(select(func.max(item_texts.c.place)).where(item_texts.c.campaign == digest))
    place, new = -1 if last is None else int(last), []
    for owned in items:
        item = owned.item
        if item.digest in there:
            continue
        there.add(item.digest)
        place += 1
        row = {"campaign": digest, "item": item.digest, "place": place, "owner": owned.owner}
        connection.execute(item_texts.insert().values(**row, body=item_line(item).decode(), at=now()))
        body = {"campaign": digest, "item": item.digest, "pins": Pins.of(campaign, item).digest}
        append_event(connection, "item.added", body)
        new.append(item)
    return new


def added_items(connection: Connection, campaign: str) -> list[Item]:
    """The items of a campaign (a digest) whose texts are there, in their order.

    Raises:
        InvalidEvidence: a text is not the one whose digest the ledger has.
    """
    query = select(item_texts.c.item, item_texts.c.body).where(item_texts.c.campaign == campaign)
    found = []
    for row in connection.execute(query.order_by(item_texts.c.place)):
        item = item_of_line(row.body)
        if item.digest != row.item:
            raise InvalidEvidence(
                f"items: {short(row.item)} was changed after it was captured; restore the database"
            )
        found.append(item)
    return found


def forget_owner(ledger: Ledger, owner: str) -> int:
    """Delete the texts of everything that belongs to one owner, in all campaigns; returns how many items that were."""
    with writing(ledger.engine) as connection:
        return forget_in(connection, owner)


def forget_in(connection: Connection, owner: str) -> int:
    """`forget_owner` inside a transaction of `db.writing`."""
    gone = [
        (str(row.campaign), str(row.item))
        for row in connection.execute(
            select(item_texts.c.campaign, item_texts.c.item).where(item_texts.c.owner == owner)
        )
    ]
    if not gone:
        return 0
    connection.execute(delete(item_texts).where(item_texts.c.owner == owner))
    append_event(connection, "texts.deleted", {"items": [list(pair) for pair in gone]})
    return len(gone)


def deleted_items(connection: Connection, campaign: str) -> set[str]:
    """Digests of the items of a campaign whose texts were deleted on demand."""
    query = select(events.c.body).where(events.c.kind == "texts.deleted")
    pairs = [pair for body in connection.execute(query).scalars() for pair in json.loads(body)["items"]]
    return {item for of, item in pairs if of == campaign}


def typed_item(text: str, answers: tuple[str, str], systems: tuple[str, str]) -> Item:
    """An item of a prompt that a rater typed; typed twice it is two items.

    Raises:
        BadRequest: the prompt is empty.
    """
    if not text.strip():
        raise BadRequest("prompt: is empty; type what the models should answer")
    mark = f"typed-{secrets.token_hex(8)}"
    return Item((Message("user", text),), answers, mark, mark, systems=systems, responses=(mark, mark))
