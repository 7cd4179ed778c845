"""Reading: interactions with their texts decrypted, and feedback with what it is about. Nothing is written here.

What stands in memory is one row at a time, whatever the tables hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Engine, Select, func, select

from llmops.capture.interaction import Feedback, Interaction, Served, interaction_of, unreadable
from llmops.capture.keyring import Keyring, NoKey
from llmops.capture.writing import served_of_row
from llmops.errors import BadRequest, InvalidEvidence
from llmops.schema import JsonDict
from llmops.tables import captures, feedback, responses

_ROWS_AT_ONCE = 500
_ABOUT, _OVER = responses.alias("about"), responses.alias("over_response")


@dataclass(frozen=True)
class Filter:
    """Which responses are meant; what is None does not narrow them. Times are RFC 3339, as records have them."""

    asked: str | None = None  # public name
    adapter: str | None = None  # digest
    tenant: str | None = None
    since: str | None = None
    until: str | None = None  # exclusive

    def conditions(self, table: Any = responses.c) -> list[ColumnElement[bool]]:
        """The filter over columns of `responses`."""
        same = {"asked": self.asked, "adapter": self.adapter, "tenant": self.tenant}
        found = [table[name] == value for name, value in same.items() if value is not None]
        if self.since is not None:
            found.append(table.at >= self.since)
        if self.until is not None:
            found.append(table.at < self.until)
        return found


ALL = Filter()


def interactions(
    engine: Engine, keyring: Keyring, wanted: Filter = ALL, newest: int | None = None
) -> Iterator[Interaction]:
    """Captured interactions, oldest first, or the `newest` so many of them, newest first.

    One whose text cannot be read (`no key`, `altered`) comes without it and says so in `problem`.
    """
    query = _captured().where(*wanted.conditions())
    if newest is None:
        query = query.order_by(responses.c.at, responses.c.id)
    else:
        query = query.order_by(responses.c.at.desc(), responses.c.id.desc()).limit(newest)
    for row in _rows(engine, query):
        served = served_of_row(row)
        try:
            yield _opened(served, row, keyring)
        except NoKey as error:
            yield unreadable(served, f"no key: {error}")
        except InvalidEvidence as error:
            yield unreadable(served, f"altered: {error}")


def interaction(engine: Engine, keyring: Keyring, response: str) -> Interaction:
    """The captured interaction of a response id.

    Raises:
        BadRequest: its texts are not kept.
        NoKey: the environment does not have the key.
        InvalidEvidence: its text was altered.
    """
    for row in _rows(engine, _captured().where(responses.c.id == response)):
        return _opened(served_of_row(row), row, keyring)
    raise BadRequest(
        f"capture {response[:128]}: no texts are kept of it; it was not sampled, is too old, or was forgotten"
    )


def captured(engine: Engine, wanted: Filter, newest: int) -> Iterator[tuple[Served, int]]:
    """The newest captured responses without their texts, newest first, each with how many feedback it has."""
    n_feedback = (
        select(func.count())
        .where(feedback.c.response == responses.c.id)
        .scalar_subquery()
        .label("n_feedback")
    )
    query = (
        select(*responses.c, n_feedback)
        .join(captures, captures.c.response == responses.c.id)
        .where(*wanted.conditions())
        .order_by(responses.c.at.desc(), responses.c.id.desc())
        .limit(newest)
    )
    for row in _rows(engine, query):
        yield served_of_row(row), row["n_feedback"]


def feedback_about(engine: Engine, keyring: Keyring, response: str) -> Iterator[Feedback]:
    """Everything that was said of one response, in the order it was given.

    Raises:
        NoKey, InvalidEvidence: as for `feedback_rows`.
    """
    for row in _rows(engine, _said().where(feedback.c.response == response)):
        yield _feedback(row, keyring)


def feedback_rows(
    engine: Engine, keyring: Keyring | None, wanted: Filter = ALL, after: int = 0
) -> Iterator[Feedback]:
    """Feedback with a number above `after`, in the order it was given; `wanted` narrows what it is about.

    Without a keyring, comments and corrections are not read.

    Raises:
        NoKey: a text was encrypted with a key that the ring lacks.
        InvalidEvidence: a text was altered.
    """
    query = _said().where(feedback.c.number > after, *wanted.conditions(_ABOUT.c))
    for row in _rows(engine, query):
        yield _feedback(row, keyring)


def _captured() -> Select[Any]:
    texts = (captures.c.key.label("text_key"), captures.c.payload.label("text_payload"))
    return select(*responses.c, *texts).join(captures, captures.c.response == responses.c.id)


def _said() -> Select[Any]:
    columns = [*feedback.c, *_prefixed(_ABOUT, "about_"), *_prefixed(_OVER, "over_r_")]
    return (
        select(*columns)
        .join(_ABOUT, _ABOUT.c.id == feedback.c.response)
        .outerjoin(_OVER, _OVER.c.id == feedback.c.over)
        .order_by(feedback.c.number)
    )


def _prefixed(table: Any, prefix: str) -> list[Any]:
    return [column.label(prefix + column.name) for column in table.c]


def _opened(served: Served, row: Any, keyring: Keyring) -> Interaction:
    return interaction_of(served, keyring.open(served.response, row["text_key"], row["text_payload"]))


def _feedback(row: Any, keyring: Keyring | None) -> Feedback:
    texts: JsonDict = {}
    if keyring is not None and row["payload"] is not None:
        texts = orjson.loads(keyring.open(row["id"], row["key"], row["payload"]))
    over = served_of_row(row, "over_r_") if row["over_r_id"] is not None else None
    return Feedback(
        number=row["number"],
        id=row["id"],
        served=served_of_row(row, "about_"),
        choice=row["choice"],
        user=row["user"],
        at=row["at"],
        thumb=row["thumb"],
        score=row["score"],
        comment=texts.get("comment"),
        correction=texts.get("correction"),
        over=over,
        over_choice=row["over_choice"] or 0,
        corrected=row["corrected"],
    )


def _rows(engine: Engine, query: Select[Any]) -> Iterator[Any]:
    with engine.connect() as connection:
        yield from connection.execution_options(yield_per=_ROWS_AT_ONCE).execute(query).mappings()
