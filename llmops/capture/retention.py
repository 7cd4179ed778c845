"""Deleting: what its time is over for, and all that is kept of a person.

Deleted text is overwritten in an SQLite file and its log; PostgreSQL does so with its next vacuum. What was exported
or backed up before lies elsewhere and stays. The ledger is told how many rows, never whose.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, or_, select, text, update

from llmops.capture.config import CaptureSettings
from llmops.capture.keyring import Keyring
from llmops.db import writing
from llmops.ledger import append_event
from llmops.ratings.added import forget_in
from llmops.settings import stamp
from llmops.tables import captures, feedback, responses

_ROWS_AT_ONCE = 1000  # a transaction holds the write lock that feedback waits for


@dataclass(frozen=True)
class Deleted:
    """Rows that are gone.

    `n_unnamed`: responses that stay without their user, and without texts; `n_items`: what campaigns showed of them.
    """

    n_texts: int
    n_responses: int
    n_feedback: int
    n_unnamed: int = 0
    n_items: int = 0

    @property
    def anything(self) -> bool:
        """Whether a row was touched."""
        return any(self.__dict__.values())


def purge(engine: Engine, settings: CaptureSettings, at: datetime | None = None) -> Deleted:
    """Delete texts older than `keep_days`, and responses older than `keep_lineage_days` with their feedback.

    Args:
        engine: the database.
        settings: the profile's.
        at: the time to count from; default: now.

    Raises:
        StoreError: the database did not take it; what was deleted by then is gone.
    """
    moment = at or datetime.now(UTC)
    texts, lineage = (_before(moment, days) for days in (settings.keep_days, settings.keep_lineage_days))
    old = select(responses.c.id).where(responses.c.at < lineage)
    n_texts = _delete(engine, captures, captures.c.response, captures.c.at < max(texts, lineage))
    n_feedback = _delete(engine, feedback, feedback.c.number, feedback.c.response.in_(old))
    n_responses = _delete(engine, responses, responses.c.id, responses.c.at < lineage)
    deleted = Deleted(n_texts, n_responses, n_feedback)
    _tell(engine, "capture.purged", deleted)
    return deleted


def forget(engine: Engine, keyring: Keyring, user: str, tenant: str | None = None) -> Deleted:
    """Delete a person's texts and feedback; which model answered them stays, without them.

    The texts go from the campaigns that were opened on them too. What others wrote about the person's answers
    (comments, corrections) goes as well, their thumbs and scores stay.

    Args:
        engine: the database.
        keyring: every key that was in use while the person was: marks are made with it.
        user: the id that clients sent in `user`.
        tenant: whose user it is; default: every tenant's user of that id.

    Raises:
        StoreError: the database did not take it; nothing was deleted.
    """
    with writing(engine) as connection:
        _overwriting(connection)
        tenants = [tenant] if tenant is not None else _tenants(connection)
        marks = sorted({mark for one in tenants for mark in keyring.marks(one, user)})
        own = select(responses.c.id).where(responses.c.user.in_(marks))
        n_texts = connection.execute(delete(captures).where(captures.c.response.in_(own))).rowcount
        others = or_(feedback.c.user.is_(None), feedback.c.user.not_in(marks))
        by_others = update(feedback).where(feedback.c.response.in_(own), others)
        connection.execute(by_others.values(key=None, payload=None))
        n_feedback = connection.execute(delete(feedback).where(feedback.c.user.in_(marks))).rowcount
        unnamed = update(responses).where(responses.c.user.in_(marks)).values(user=None)
        n_unnamed = connection.execute(unnamed).rowcount
        n_items = sum(forget_in(connection, mark) for mark in marks)
    deleted = Deleted(n_texts, 0, n_feedback, n_unnamed, n_items)
    _tell(engine, "capture.forgotten", deleted)
    return deleted


def _before(moment: datetime, days: int) -> str:
    then = moment.astimezone(UTC) - timedelta(days=days)
    return stamp(then)


def _tenants(connection: Connection) -> list[str]:
    found = {
        t for table in (responses, feedback) for t in connection.scalars(select(table.c.tenant).distinct())
    }
    return sorted(found)


def _delete(engine: Engine, table: Table, key: Any, condition: Any) -> int:
    """Delete the rows that a condition holds for, some at a time; returns how many."""
    n_rows = 0
    while True:
        with writing(engine) as connection:
            _overwriting(connection)
            some = select(key).where(condition).limit(_ROWS_AT_ONCE)
            found = connection.scalars(some).all()
            if found:
                connection.execute(delete(table).where(key.in_(found)))
        n_rows += len(found)
        if len(found) < _ROWS_AT_ONCE:
            return n_rows


def _overwriting(connection: Connection) -> None:
    """Let this connection write zeros over what it deletes."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("PRAGMA secure_delete=ON")


def _tell(engine: Engine, kind: Any, deleted: Deleted) -> None:
    if not deleted.anything:
        return
    with writing(engine) as connection:
        append_event(connection, kind, dict(deleted.__dict__))
    if engine.dialect.name == "sqlite":
        # The log still holds the pages as they were, until it is written into the file and emptied.
        with engine.connect().execution_options(llmops_bare=True) as connection:
            connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
