"""Items whose texts lie in the database: captured and typed ones, which their owner may have deleted.

The ledger holds each one's digest, so that an altered text is found; after a deletion the digest alone remains.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, select

from llmops.db import writing
from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Ledger, append_event
from llmops.ratings.campaigns import item_line, item_of_line
from llmops.records import Campaign, Item, Message, Pins
from llmops.schema import short
from llmops.settings import now
from llmops.tables import events, item_texts

BETWEEN = "\n"
"""What stands between several owners: no name or mark has a line's end in it."""


@dataclass(frozen=True)
class Owned:
    """An item and whose texts it shows: `owner` is what a deletion names, such as a user's mark; None for nobody.

    Several owners stand joined by `BETWEEN`: deleting what is one's deletes the item.
    """

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
        key, body = _sealed(item)
        row = {"campaign": digest, "item": item.digest, "place": place, "owner": owned.owner}
        connection.execute(item_texts.insert().values(**row, key=key, body=body, at=now()))
        told = {"campaign": digest, "item": item.digest, "pins": Pins.of(campaign, item).digest}
        append_event(connection, "item.added", told)
        new.append(item)
    return new


def added_items(connection: Connection, campaign: str) -> list[Item]:
    """The items of a campaign (a digest) whose texts are there, in their order.

    Raises:
        InvalidEvidence: a text is not the one whose digest the ledger has.
        ConfigError: one was encrypted with a key that the environment does not have.
    """
    query = select(item_texts).where(item_texts.c.campaign == campaign)
    found = []
    for row in connection.execute(query.order_by(item_texts.c.place)):
        item = _opened(row.item, row.key, row.body)
        if item.digest != row.item:
            raise InvalidEvidence(
                f"items: {short(row.item)} was changed after it was captured; restore the database"
            )
        found.append(item)
    return found


def _sealed(item: Item) -> tuple[str | None, str]:
    """Id of the key and the item's line as it is kept: encrypted where captured texts are, with the same keys."""
    from llmops.capture.keyring import Keyring

    ring, line = Keyring.of_environment(), item_line(item)
    return ring.seal(item.digest, line) if ring.writer is not None else (None, line.decode())


def _opened(digest: str, key: str | None, body: str) -> Item:
    from llmops.capture.keyring import Keyring

    return item_of_line(body if key is None else Keyring.of_environment().open(digest, key, body))


def forget_owner(ledger: Ledger, owner: str) -> int:
    """Delete all texts that show something of one owner, in all campaigns; returns how many items that were."""
    with writing(ledger.engine) as connection:
        return forget_in(connection, owner)


def forget_in(connection: Connection, owner: str) -> int:
    """`forget_owner` inside a transaction of `db.writing`."""
    c = item_texts.c
    rows = connection.execute(
        select(c.campaign, c.item, c.owner).where(c.owner.contains(owner, autoescape=True))
    )
    gone = [(str(row.campaign), str(row.item)) for row in rows if owner in row.owner.split(BETWEEN)]
    if not gone:
        return 0
    for campaign, item in gone:
        connection.execute(delete(item_texts).where(c.campaign == campaign, c.item == item))
    append_event(connection, "texts.deleted", {"items": [list(pair) for pair in gone]})
    return len(gone)


def deleted_items(connection: Connection, campaign: str) -> set[str]:
    """Digests of the items of a campaign whose texts were deleted on demand."""
    return {item for of, item in all_deleted_items(connection) if of == campaign}


def all_deleted_items(connection: Connection) -> set[tuple[str, str]]:
    """(campaign, item) of everything whose texts were deleted on demand."""
    query = select(events.c.body).where(events.c.kind == "texts.deleted")
    pairs = [pair for body in connection.execute(query).scalars() for pair in json.loads(body)["items"]]
    return {(str(of), str(item)) for of, item in pairs}


def typed_item(text: str, answers: tuple[str, str], systems: tuple[str, str]) -> Item:
    """An item of a prompt that a rater typed; typed twice it is two items.

    Raises:
        BadRequest: the prompt is empty.
    """
    if not text.strip():
        raise BadRequest("prompt: is empty; type what the models should answer")
    mark = f"typed-{secrets.token_hex(8)}"
    return Item((Message("user", text),), answers, mark, mark, systems=systems, responses=(mark, mark))
