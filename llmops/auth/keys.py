"""The keys of one database: made, listed, revoked, and recognised when somebody presents one.

Reads and writes the table `access_keys` and the ledger, which gets ids only. Every change takes the next `revision`, so
that a process with a cache sees by one number whether it is still right.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from sqlalchemy import Connection, Engine, Row, func, select
from sqlalchemy.exc import IntegrityError

from llmops.auth.hashing import NO_PASSWORD, TOKEN, new_token, password_fits, password_hash, token_hash
from llmops.auth.key import Created, Key, KeyLimits, NewKey
from llmops.auth.salts import Salts
from llmops.db import open_database, writing
from llmops.errors import BadRequest, LlmopsError
from llmops.ledger import append_event
from llmops.records import Principal
from llmops.settings import Workspace, now, stamp
from llmops.tables import access_keys

MAX_FAILURES = 10
FAILURES_WITHIN_S = 60
_MAX_FAILED_NAMES = 10_000
_REVISION = select(func.max(access_keys.c.revision))


class SignInPaused(LlmopsError):
    """Too many wrong passwords for one name within a minute; nothing was compared."""


@dataclass(frozen=True)
class LiveKeys:
    """All keys (not passwords) that were not revoked, by hash, as of one revision; 0: there never was a key."""

    revision: int
    keys: Mapping[str, Key]


class Keys:
    """The keys and passwords of one database."""

    def __init__(self, engine: Engine) -> None:
        """Use an open database (`llmops.db.open_database`)."""
        self._engine = engine
        self._salts = Salts(engine)
        self._failures: Counter[str] = Counter()
        self._minute = 0

    @classmethod
    def of(cls, workspace: Workspace) -> Self:
        """The keys of a workspace."""
        return cls(open_database(workspace.database_url))

    # ------------------------------------------------------------ changes

    def create(self, wish: NewKey) -> Created:
        """Make a key; its token is in the result and nowhere else.

        Raises:
            BadRequest: the wish cannot be met, or somebody has a password under that name.
        """
        wish.check()
        key_id = secrets.token_hex(6)
        token = None if wish.password is not None else new_token(key_id)
        kept = token_hash(token) if token else password_hash(wish.password or "")
        with writing(self._engine) as connection:
            row = self._row(wish, key_id) | {"hash": kept, "revision": _next_revision(connection)}
            try:
                connection.execute(access_keys.insert().values(row))
            except IntegrityError:
                raise BadRequest(
                    f"key: {wish.name} has a password already; `llmops key revoke {wish.name}` first"
                ) from None
            body = {"key": key_id, "role": wish.role, "sort": row["kind"]}
            append_event(connection, "key.created", body)
        return Created(self._one(key_id), token)

    def revoke(self, which: str) -> Key:
        """Make a key useless from now on; `which` is its id, or the name of the only live key under it.

        Raises:
            BadRequest: there is no such live key, or several have the name.
        """
        with writing(self._engine) as connection:
            live = access_keys.c.revoked_at.is_(None)
            mine = (access_keys.c.id == which) | (access_keys.c.name == which)
            found = connection.execute(select(access_keys.c.id).where(live, mine)).scalars().all()
            if len(found) != 1:
                raise BadRequest(
                    f"key {which!r}: {'names ' + str(len(found)) + ' keys' if found else 'is no live key'}; "
                    "`llmops key list` shows their ids"
                )
            change = {"revoked_at": now(), "revision": _next_revision(connection)}
            connection.execute(access_keys.update().where(access_keys.c.id == found[0]).values(change))
            append_event(connection, "key.revoked", {"key": found[0]})
        return self._one(found[0])

    # ------------------------------------------------------------ who is it

    def authenticate(self, presented: str) -> Principal | None:
        """Whom a key stands for; None when it is none, was revoked or has expired."""
        key = self.opened_by(presented)
        return None if key is None else key.principal

    def opened_by(self, presented: str) -> Key | None:
        """The record of a key that opens something; None when it is none, was revoked or has expired."""
        if not TOKEN.fullmatch(presented):
            return None
        with self._engine.connect() as connection:
            query = select(access_keys).where(access_keys.c.hash == token_hash(presented))
            row = connection.execute(query).one_or_none()
        key = _key(row) if row is not None else None
        return key if key is not None and key.live(now()) else None

    def sign_in(self, name: str, password: str) -> Principal | None:
        """Whom a name with its password stands for; None when they do not belong together.

        Raises:
            SignInPaused: 10 wrong passwords for that name came within this minute.
        """
        self._require_patience(name)
        query = select(access_keys).where(
            access_keys.c.kind == "password", access_keys.c.name == name, access_keys.c.revoked_at.is_(None)
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).one_or_none()
        fits = password_fits(password, row.hash if row is not None else NO_PASSWORD)
        if row is None or not fits or not _key(row).live(now()):
            self._failures[name if len(self._failures) < _MAX_FAILED_NAMES else ""] += 1
            return None
        return _key(row).principal

    def rater_id(self, principal: Principal) -> str:
        """What stands with the ratings of whoever this is: a salted digest of the holder's name.

        The same for every key and password under one name, so that a renewed key stays the same rater.
        """
        if principal.key is None:
            return self.pseudonym("local")
        return self.pseudonym(self._one(principal.key).name)

    def pseudonym(self, name: str) -> str:
        """A salted digest (64 characters) of a rater's name."""
        return self._salts.digest("rater", name)

    # ------------------------------------------------------------ reading

    def list(self) -> tuple[Key, ...]:
        """All keys and passwords, oldest first, revoked ones too."""
        query = select(access_keys).order_by(access_keys.c.created_at, access_keys.c.id)
        with self._engine.connect() as connection:
            return tuple(_key(row) for row in connection.execute(query))

    def find(self, key_id: str) -> Key | None:
        """The key or password of that id, revoked or not."""
        with self._engine.connect() as connection:
            row = connection.execute(select(access_keys).where(access_keys.c.id == key_id)).one_or_none()
        return None if row is None else _key(row)

    def required(self) -> bool:
        """Whether anybody was ever given a key or a password: from then on nothing is open without one."""
        return self.revision() > 0

    def revision(self) -> int:
        """A number that grows with every change; 0 while there never was a key."""
        with self._engine.connect() as connection:
            return int(connection.scalar(_REVISION) or 0)

    def live(self) -> LiveKeys:
        """All keys that can open something, for a process that asks often."""
        query = select(access_keys).where(access_keys.c.kind == "key", access_keys.c.revoked_at.is_(None))
        revision = self.revision()  # first: a change in between makes the next look find a higher one
        with self._engine.connect() as connection:
            return LiveKeys(revision, {row.hash: _key(row) for row in connection.execute(query)})

    def _one(self, key_id: str) -> Key:
        with self._engine.connect() as connection:
            return _key(connection.execute(select(access_keys).where(access_keys.c.id == key_id)).one())

    def _row(self, wish: NewKey, key_id: str) -> dict[str, Any]:
        expires = None if wish.days is None else datetime.now(UTC) + timedelta(days=wish.days)
        return {
            "id": key_id, "name": wish.name, "kind": "key" if wish.password is None else "password",
            "role": wish.role, "tenant": wish.tenant, "names": json.dumps(sorted(wish.names)) if wish.names else None,
            **wish.limits.__dict__, "created_at": now(), "revoked_at": None,
            "expires_at": expires and stamp(expires),
        }  # fmt: skip

    def _require_patience(self, name: str) -> None:
        minute = _minute()
        if minute != self._minute:
            self._failures.clear()
            self._minute = minute
        if max(self._failures[name], self._failures[""]) >= MAX_FAILURES:
            raise SignInPaused(f"sign-in: too many wrong passwords for {name[:40]!r}; try again in a minute")


def _minute() -> int:
    return int(time.time() // FAILURES_WITHIN_S)


def _next_revision(connection: Connection) -> int:
    return int(connection.scalar(_REVISION) or 0) + 1


def _key(row: Row[Any]) -> Key:
    limits = KeyLimits(row.requests_per_minute, row.tokens_per_minute, row.tokens_per_day)
    names = None if row.names is None else frozenset(json.loads(row.names))
    return Key(
        row.id, row.name, row.kind, row.role, row.tenant, names, limits,
        row.created_at, row.expires_at, row.revoked_at,
    )  # fmt: skip
