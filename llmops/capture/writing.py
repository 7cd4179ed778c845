"""Writing: responses, texts and feedback, inside a transaction of `db.writing` that is durable once it is over.

What has the id of a row that is there already is left as it is: a batch that was written and not acknowledged may
be written again.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite

from llmops.capture.interaction import Given, Served, Thumb
from llmops.capture.keyring import Keyring
from llmops.capture.redact import Redactor
from llmops.errors import BadRequest
from llmops.schema import JsonDict, digest_of
from llmops.settings import now
from llmops.tables import captures, feedback, responses

MAX_RESPONSE_ID = 128


class UnknownResponse(BadRequest):
    """No such response was served to this tenant, or it was too long ago."""


class KeyReused(BadRequest):
    """An idempotency key came with other contents before."""


@dataclass(frozen=True)
class SealedText:
    """An interaction's texts, encrypted; `row` is the response's id."""

    row: str
    at: str
    key: str
    payload: str
    n_bytes: int  # before encryption
    n_redacted: int


@dataclass(frozen=True)
class NewFeedback:
    """What a client says of a response; `tenant` None: whoever asks may speak of every tenant's.

    `user` is the client's own id of the person, `idempotency` the key under which it is stored once.
    """

    response: str
    tenant: str | None
    choice: int = 0
    user: str | None = None
    thumb: Thumb | None = None
    score: int | None = None
    comment: str | None = None
    correction: str | None = None
    over: tuple[str, int] | None = None
    idempotency: str | None = None


@dataclass(frozen=True)
class Protection:
    """How texts are made safe to keep."""

    keyring: Keyring
    redactor: Redactor

    def sealed(self, row: str, at: str, value: JsonDict) -> SealedText:
        """A JSON value redacted and encrypted.

        Raises:
            NotRedacted: a rule took too long.
            ConfigError: there is no key.
        """
        clean, n_redacted = self.redactor.value(value)
        data = orjson.dumps(clean)
        key, payload = self.keyring.seal(row, data)
        return SealedText(row, at, key, payload, len(data), n_redacted)


def write_served(connection: Connection, rows: Sequence[Served]) -> None:
    """Store which models gave these responses."""
    _insert(connection, responses, [_served_row(row) for row in rows])


def write_texts(connection: Connection, texts: Sequence[SealedText]) -> None:
    """Store texts of responses."""
    rows = [
        {
            "response": t.row, "at": t.at, "key": t.key, "payload": t.payload, "n_bytes": t.n_bytes,
            "n_redacted": t.n_redacted,
        }
        for t in texts
    ]  # fmt: skip
    _insert(connection, captures, rows)


def give_feedback(connection: Connection, new: NewFeedback, protection: Protection) -> Given:
    """Store feedback once: the same again, by its idempotency key or as the newest of the same person, is the same.

    Raises:
        UnknownResponse: one of the responses is not known.
        KeyReused: the key came with other contents.
        BadRequest: a choice that the response does not have, or an answer that is preferred to itself.
        ConfigError: it has a text and there is no key to encrypt it with.
        NotRedacted: a rule took too long.
    """
    about, over = _subjects(connection, new)
    user = protection.keyring.mark(about.tenant, new.user) if new.user is not None else about.user
    values: dict[str, Any] = {
        "response": about.response, "choice": new.choice, "user": user, "thumb": new.thumb, "score": new.score,
        "over": over.response if over else None, "over_choice": new.over[1] if new.over else None,
        "corrected": new.correction is not None,
    }  # fmt: skip
    digest = digest_of({**values, "comment": new.comment, "correction": new.correction})
    if known := _stored_before(connection, about, (new, digest, user)):
        return Given(known, about, repeated=True)
    number = (connection.scalar(select(func.max(feedback.c.number))) or 0) + 1
    at, feedback_id = now(), f"fb-{uuid.uuid4().hex[:24]}"
    texts = {"comment": new.comment, "correction": new.correction}
    said = {name: text for name, text in texts.items() if text is not None}
    sealed = protection.sealed(feedback_id, at, said) if said else None
    row = {
        **values, "number": number, "id": feedback_id, "tenant": about.tenant, "at": at, "digest": digest,
        "idempotency": new.idempotency, "key": sealed.key if sealed else None,
        "payload": sealed.payload if sealed else None,
    }  # fmt: skip
    connection.execute(feedback.insert(), row)
    return Given(feedback_id, about, repeated=False)


def served_of(connection: Connection, response: str) -> Served | None:
    """What is known of a response."""
    row = connection.execute(select(responses).where(responses.c.id == response)).one_or_none()
    return served_of_row(row._mapping) if row is not None else None


def served_of_row(row: Any, prefix: str = "") -> Served:
    """The response that a row of `responses` spells; its columns may have a prefix."""
    names = list(Served.__dataclass_fields__)
    values = {name: row[prefix + ("id" if name == "response" else name)] for name in names}
    return Served(**values)


def _subjects(connection: Connection, new: NewFeedback) -> tuple[Served, Served | None]:
    about = _known(connection, new.response, new)
    _require_choice(about, new.choice, "choice")
    if new.over is None:
        return about, None
    other, choice = new.over
    over = _known(connection, other, new)
    _require_choice(over, choice, "preferred_over.choice")
    if (about.response, new.choice) == (over.response, choice):
        raise BadRequest("preferred_over: is the same answer; name the other one")
    return about, over


def _known(connection: Connection, response: str, new: NewFeedback) -> Served:
    found = served_of(connection, response)
    if found is None or found.shadow_of is not None or new.tenant not in (None, found.tenant):
        raise UnknownResponse(
            f"response_id: {response[:MAX_RESPONSE_ID]!r} is not known here; send the `id` of a response that was "
            "served to you, while it is kept"
        )
    return found


def _require_choice(served: Served, choice: int, field: str) -> None:
    if choice >= served.n_answers:
        raise BadRequest(
            f"{field}: is {choice}, and response {served.response} has {served.n_answers} answer(s), counted from 0"
        )


def _stored_before(
    connection: Connection, about: Served, said: tuple[NewFeedback, str, str | None]
) -> str | None:
    """The id of the feedback that this one repeats."""
    new, digest, user = said
    table = feedback.c
    if new.idempotency is not None:
        query = select(table.id, table.digest).where(
            table.tenant == about.tenant, table.idempotency == new.idempotency
        )
        row = connection.execute(query).one_or_none()
        if row is not None and row.digest != digest:
            raise KeyReused(
                f"idempotency_key: {new.idempotency!r} was sent with other contents before; use a new key"
            )
        return str(row.id) if row is not None else None
    query = (
        select(table.id, table.digest)
        .where(table.response == about.response, table.choice == new.choice, table.user == user)
        .order_by(table.number.desc())
        .limit(1)
    )
    row = connection.execute(query).one_or_none()
    return str(row.id) if row is not None and row.digest == digest else None


def _served_row(served: Served) -> dict[str, Any]:
    row = dict(served.__dict__)
    row["id"] = row.pop("response")
    return row


def _insert(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(dialect.insert(table).on_conflict_do_nothing(), rows)
