"""The ledger: an append-only, hash-chained list of events that decides what is true about adapters and releases.

Each event's hash covers its number, time, kind, body and the hash before it, so an edited row breaks the chain where it
stands. A chain alone does not notice a deleted tail: `Anchor`s (number and hash of a head) are kept outside the
database in every release record, and `verify` takes them. Bodies hold ids and digests only, never prompts or ratings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import Connection, Engine, select

from llmops.db import open_database, writing
from llmops.errors import InvalidEvidence
from llmops.schema import JsonDict, canonical_json, digest_of
from llmops.settings import Workspace, now
from llmops.tables import events

EventKind = Literal[
    "base.resolved",
    "dataset.snapshotted",
    "run.started",
    "run.resumed",
    "run.finished",
    "run.failed",
    "adapter.registered",
    "adapter.proved",
    "adapter.exported",
    "adapter.pushed",
    "gate.declared",
    "report.stored",
    "lm_eval.stored",
    "suite.grown",
    "judged",
    "judge.calibrated",
    "campaign.opened",
    "item.added",
    "rating.given",
    "rater.withdrawn",
    "texts.deleted",
    "campaign.closed",
    "preferences.snapshotted",
    "decision.made",
    "approval.given",
    "release.requested",
    "release.activated",
    "release.refused",
    "rollout.requested",
    "rollout.started",
    "rollout.refused",
    "rollout.stepped",
    "rollout.ready",
    "rollout.abort_requested",
    "rollout.aborted",
    "engine.requested",
    "engine.started",
    "engine.switched",
    "engine.retired",
    "engine.refused",
    "serve.started",
    "serve.stopped",
    "key.created",
    "key.revoked",
    "admin.called",
    "store.collected",
    "backup.restored",
    "capture.purged",
    "capture.forgotten",
    "capture.exported",
]
EVENT_KINDS: tuple[str, ...] = get_args(EventKind)
GENESIS = "0" * 64
# Built once: building a statement takes longer than running it.
_HEAD = select(events.c.seq, events.c.hash).order_by(events.c.seq.desc()).limit(1)
_INSERT = events.insert()


@dataclass(frozen=True)
class Event:
    """One event of the ledger; `seq` counts from 1."""

    seq: int
    at: str
    kind: str
    body: JsonDict
    prev: str
    hash: str


@dataclass(frozen=True)
class Anchor:
    """A head of the chain that is known from outside the database, and where it is written."""

    seq: int
    hash: str
    source: str


class Ledger:
    """The events of one database."""

    def __init__(self, engine: Engine) -> None:
        """Use an open database (`llmops.db.open_database`)."""
        self.engine = engine

    @classmethod
    def of(cls, workspace: Workspace) -> Ledger:
        """The ledger of a workspace, its database made when it is not there."""
        return cls(open_database(workspace.database_url))

    def append(self, kind: EventKind, body: JsonDict) -> Event:
        """Write one event behind the newest; durable when this returns.

        Raises:
            ValueError: `kind` is not an event kind (a programming error).
        """
        with writing(self.engine) as connection:
            return append_event(connection, kind, body)

    def events(self, *kinds: EventKind, after: int = 0) -> list[Event]:
        """Events with a number above `after`, oldest first; all kinds when none is named.

        Raises:
            InvalidEvidence: one was edited so that it cannot be read.
        """
        query = select(events).where(events.c.seq > after).order_by(events.c.seq)
        if kinds:
            query = query.where(events.c.kind.in_(kinds))
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
        return [Event(r.seq, r.at, r.kind, _body(r.seq, r.kind, r.body), r.prev, r.hash) for r in rows]

    def head(self) -> tuple[int, str]:
        """Number and hash of the newest event; (0, 64 zeros) when there is none."""
        with self.engine.connect() as connection:
            return head_in(connection)

    def verify(self, anchors: Iterable[Anchor] = ()) -> int:
        """Recompute the whole chain and compare it with the anchors; returns the number of events.

        Raises:
            InvalidEvidence: names the first event that was edited, is missing or does not follow, or the anchor whose
                event is gone.
        """
        known = {anchor.seq: anchor for anchor in anchors}
        prev, seq = GENESIS, 0
        with self.engine.connect() as connection:
            for row in connection.execute(select(events).order_by(events.c.seq)):
                seq += 1
                if row.seq != seq:
                    raise InvalidEvidence(
                        f"ledger: event {seq} is missing (next is {row.seq}); restore the database"
                    )
                if row.hash != event_hash(row.seq, row.at, row.kind, row.body, prev) or row.prev != prev:
                    raise InvalidEvidence(
                        f"ledger: event {seq} ({row.kind}) was edited; restore the database"
                    )
                anchor = known.pop(seq, None)
                if anchor and anchor.hash != row.hash:
                    raise InvalidEvidence(
                        f"ledger: event {seq} is not the one {anchor.source} was bound to; "
                        "the chain was rewritten, restore it"
                    )
                prev = row.hash
        missing = [anchor for number, anchor in known.items() if number > seq]
        if missing:
            newest = max(missing, key=lambda a: a.seq)
            raise InvalidEvidence(
                f"ledger: ends at event {seq}, but {newest.source} was bound to event {newest.seq}; "
                "the tail was deleted, restore it"
            )
        return seq


def head_in(connection: Connection) -> tuple[int, str]:
    """As `Ledger.head`, in a transaction of the caller's."""
    last = connection.execute(_HEAD).one_or_none()
    return (last.seq, last.hash) if last else (0, GENESIS)


def append_event(connection: Connection, kind: EventKind, body: JsonDict) -> Event:
    """Write one event behind the newest inside a transaction of `db.writing`, together with whatever else it writes.

    Raises:
        ValueError: `kind` is not an event kind (a programming error).
    """
    if kind not in EVENT_KINDS:
        raise ValueError(f"ledger: {kind!r} is not an event kind")
    last, prev = head_in(connection)
    seq = last + 1
    text, at = canonical_json(body).decode(), now()
    event = Event(seq, at, kind, json.loads(text), prev, event_hash(seq, at, kind, text, prev))
    row = {"seq": seq, "at": at, "kind": kind, "body": text, "prev": prev, "hash": event.hash}
    connection.execute(_INSERT, row)
    return event


def _body(seq: int, kind: str, text: str) -> JsonDict:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise InvalidEvidence(f"ledger: event {seq} ({kind}) was edited; restore the database")
    return body


def event_hash(seq: int, at: str, kind: str, body: str, prev: str) -> str:
    """The hash of an event; `body` is its canonical JSON text exactly as stored."""
    return digest_of({"seq": seq, "at": at, "kind": kind, "body": body, "prev": prev})
