"""A key as the database has it, and the wish for a new one. Nothing here reads or writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from llmops.auth.hashing import MAX_PASSWORD, MIN_PASSWORD
from llmops.errors import BadRequest
from llmops.records import AccessRole, Principal

Kind = Literal["key", "password"]
ROLES: tuple[str, ...] = get_args(AccessRole)
_TENANT = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MAX_NAME = 128
MAX_LIMIT = 10**12


@dataclass(frozen=True)
class KeyLimits:
    """How much a key may use; None: as much as it likes. A day is a day of UTC."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    tokens_per_day: int | None = None


@dataclass(frozen=True)
class Key:
    """One key or password. `name` is whoever holds it, `names` the public model names it may use (None: all)."""

    id: str
    name: str
    kind: Kind
    role: AccessRole
    tenant: str
    names: frozenset[str] | None
    limits: KeyLimits
    created_at: str
    expires_at: str | None
    revoked_at: str | None

    def live(self, at: str) -> bool:
        """Whether it opens anything at that time (as `settings.now` spells it)."""
        return self.revoked_at is None and (self.expires_at is None or at < self.expires_at)

    @property
    def principal(self) -> Principal:
        """Whom it stands for."""
        return Principal(self.id, self.tenant, self.role, self.names)


@dataclass(frozen=True)
class NewKey:
    """What a key is to be. With a `password` it is a rater's name and password, else a token is made."""

    name: str
    role: AccessRole = "client"
    tenant: str = "local"
    names: Sequence[str] = ()  # public model names; none: all
    limits: KeyLimits = KeyLimits()
    days: int | None = None  # until it expires
    password: str | None = None

    def check(self) -> None:
        """Refuse what cannot be a key.

        Raises:
            BadRequest: names the field, its value and what it may be.
        """
        name = self.name
        if not name or len(name) > MAX_NAME or not name.isprintable() or name != name.strip():
            raise BadRequest(
                f"key: name {name[:40]!r} is not a printable name; use up to {MAX_NAME} characters"
            )
        if self.role not in ROLES:
            raise BadRequest(f"key {name}: role {self.role!r} is none; use {', '.join(ROLES)}")
        if not _TENANT.fullmatch(self.tenant):
            raise BadRequest(
                f"key {name}: tenant {self.tenant[:80]!r} is not a name; use small letters, digits, . _ -"
            )
        if self.names and self.role != "client":
            raise BadRequest(f"key {name}: role {self.role} is not bound to models; leave them out")
        if self.days is not None and not 1 <= self.days <= 36_500:
            raise BadRequest(f"key {name}: {self.days} days is no lifetime; use 1 to 36500")
        for what, limit in self.limits.__dict__.items():
            if limit is not None and not 1 <= limit <= MAX_LIMIT:
                raise BadRequest(f"key {name}: {what} is {limit}; use 1 to {MAX_LIMIT}, or leave it out")
        if self.password is not None:
            self._check_password(self.password)

    def _check_password(self, password: str) -> None:
        if self.role != "rater":
            raise BadRequest(f"key {self.name}: role {self.role} takes a key; only raters have passwords")
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise BadRequest(
                f"key {self.name}: the password has {len(password)} characters; use {MIN_PASSWORD} to {MAX_PASSWORD}"
            )


@dataclass(frozen=True)
class Created:
    """A new key with its token, which is nowhere else and cannot be shown again; None for a password."""

    key: Key
    token: str | None
