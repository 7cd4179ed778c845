"""The answers of one campaign as a process knows them: read once, then kept up with the ledger, row by row.

Whatever changes what counts (an answer, a withdrawal, items that join or are deleted, the end) is written in one
transaction with an event of the ledger. So the events behind the newest one that was seen tell everything that is new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, select

from llmops.ledger import GENESIS, head_in
from llmops.ratings.campaigns import closed_in
from llmops.ratings.queue import Turnout
from llmops.ratings.withdrawn import withdrawn_of
from llmops.records import Rating
from llmops.schema import JsonDict
from llmops.tables import events, ratings

_COLUMNS = (ratings.c.number, ratings.c.item, ratings.c.rater, ratings.c.choice, ratings.c.left)
# Built once: building a statement takes longer than running it.
_LIVE = (
    select(*_COLUMNS).where(ratings.c.campaign == bindparam("of"), ratings.c.live).order_by(ratings.c.number)
)
# Those of other campaigns too: asked for one campaign's, SQLite goes through all of its rows.
_LATER = (
    select(*_COLUMNS, ratings.c.campaign)
    .where(ratings.c.number > bindparam("last"))
    .order_by(ratings.c.number)
)
_EVENTS = (
    select(events.c.seq, events.c.hash, events.c.kind, events.c.body)
    .where(events.c.seq >= bindparam("first"))
    .order_by(events.c.seq)
)


class Said(NamedTuple):
    """One live answer: its rating's number, which of the item's answers stood left, and whether it counts as a vote."""

    number: int
    left: int
    is_vote: bool


class Tally:
    """The live answers of one campaign (a digest), what was taken back being none; equal to `moment.answers_in`.

    `votes` counts them by item. `n_turns` grows when the items may have changed, or everything was read again.
    """

    def __init__(self, campaign: str) -> None:
        """Nothing is read yet; `follow` reads."""
        self._campaign = campaign
        self.n_turns = 0
        self.forget()

    def forget(self) -> None:
        """Read everything again the next time: what is known here may not be in the database."""
        self._head = (0, GENESIS)
        self._last = 0
        self._gone: frozenset[str] = frozenset()
        self._mine: dict[str, dict[str, Said]] = {}
        self._voters: Counter[str] = Counter()
        self._changed: set[str] = set()
        self.votes: Counter[str] = Counter()
        self.closed = False

    def follow(self, connection: Connection) -> None:
        """Take in what is new, as this transaction sees it."""
        new = self._new_events(connection)
        told = [(row.kind, json.loads(row.body)) for row in new[1:] if row.kind in _TELLS]
        if not new or any(kind == "rater.withdrawn" for kind, _ in told):
            self._read_all(connection)
            return
        mine = [kind for kind, body in told if self._is_about(kind, body)]
        if "rating.given" in mine:
            for row in connection.execute(_LATER, {"last": self._last}):
                if row.campaign == self._campaign:
                    self._take(row)
        self.closed = self.closed or "campaign.closed" in mine
        self.n_turns += any(kind in ("item.added", "texts.deleted") for kind in mine)
        self._head = (new[-1].seq, new[-1].hash)

    def take(self, rating: Rating) -> None:
        """Take in a rating that was just written, before its transaction ends; `forget` when it does not end well."""
        self._take(rating)

    # ------------------------------------------------------------ what is known

    def by(self, rater: str) -> dict[str, Said]:
        """What this rater answered or skipped, by item, oldest first; not to be changed."""
        return self._mine.get(rater, {})

    def is_withdrawn(self, rater: str) -> bool:
        """Whether a rater has withdrawn."""
        return rater in self._gone

    def turnout(self, rater: str) -> Turnout:
        """How many people have a vote that counts, and whether this one has."""
        return Turnout(len(self._voters), rater in self._voters)

    def changed(self) -> set[str]:
        """Items whose votes changed since this was last asked."""
        changed, self._changed = self._changed, set()
        return changed

    # ------------------------------------------------------------ reading

    def _new_events(self, connection: Connection) -> Sequence[Any]:
        """The newest event that was seen and all behind it; none where that one is not there (any more)."""
        seq, digest = self._head
        if not seq:
            return ()
        found = connection.execute(_EVENTS, {"first": seq}).all()
        return found if found and (found[0].seq, found[0].hash) == (seq, digest) else ()

    def _read_all(self, connection: Connection) -> None:
        self.forget()
        self.n_turns += 1
        # The head first: what is written while the rest is read is then read once more, which changes nothing.
        head = head_in(connection)
        self.closed = closed_in(connection, self._campaign)
        self._gone = withdrawn_of(connection)
        for row in connection.execute(_LIVE, {"of": self._campaign}):
            self._take(row)
        self._head = head

    def _take(self, row: Any) -> None:
        """One rating in the place of what its rater said of the item before."""
        mine = self._mine.setdefault(row.rater, {})
        before = mine.pop(row.item, None)
        if before is not None and before.is_vote:
            self._count(row.item, row.rater, -1)
        if row.choice != "undone":
            is_vote = row.choice != "skip" and row.rater not in self._gone
            mine[row.item] = Said(row.number, row.left, is_vote)
            if is_vote:
                self._count(row.item, row.rater, 1)
        self._last = max(self._last, row.number)

    def _count(self, item: str, rater: str, by: int) -> None:
        for counter, key in ((self.votes, item), (self._voters, rater)):
            counter[key] += by
            if not counter[key]:
                del counter[key]
        self._changed.add(item)

    def _is_about(self, kind: str, body: JsonDict) -> bool:
        if kind == "texts.deleted":
            return any(campaign == self._campaign for campaign, _ in body["items"])
        return bool(body["campaign"] == self._campaign)


_TELLS = frozenset({"rating.given", "item.added", "texts.deleted", "campaign.closed", "rater.withdrawn"})
