"""Random salts of a workspace, one a purpose, made when first asked for: what turns names into numbers for others."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Literal

from sqlalchemy import Engine, select

from llmops.db import writing
from llmops.tables import salts

Purpose = Literal["rater", "cache", "session"]


class Salts:
    """The salts of one database; each is read once."""

    def __init__(self, engine: Engine) -> None:
        """Use an open database."""
        self._engine = engine
        self._known: dict[Purpose, bytes] = {}

    def digest(self, purpose: Purpose, name: str) -> str:
        """A digest (64 characters) of `name` that only who has this database can compute (HMAC-SHA256)."""
        return hmac.new(self._salt(purpose), name.encode(), hashlib.sha256).hexdigest()

    def _salt(self, purpose: Purpose) -> bytes:
        if purpose not in self._known:
            self._known[purpose] = self._read(purpose) or self._make(purpose)
        return self._known[purpose]

    def _read(self, purpose: Purpose) -> bytes | None:
        with self._engine.connect() as connection:
            found = connection.scalar(select(salts.c.value).where(salts.c.purpose == purpose))
        return bytes.fromhex(found) if found else None

    def _make(self, purpose: Purpose) -> bytes:
        with writing(self._engine) as connection:
            found = connection.scalar(select(salts.c.value).where(salts.c.purpose == purpose))
            if found is None:
                found = secrets.token_hex(32)
                connection.execute(salts.insert().values(purpose=purpose, value=found))
        return bytes.fromhex(found)
