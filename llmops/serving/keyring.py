"""The keys that open this gateway, in memory: looked up by hash at every request, read again when they changed.

One number in the database tells whether anything changed; it is asked for once a second, and at once (but at most ten
times a second for all together) when somebody comes with a key that is not known. So a new key works at once, and a
revoked one ends within two seconds on every gateway of the database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError

from llmops.auth import Key, KeyLimits, Keys, Salts
from llmops.auth.hashing import TOKEN, token_hash
from llmops.errors import LlmopsError
from llmops.records import Principal
from llmops.serving.http import Refusal

LOOK_S = 1.0
SOONEST_S = 0.1
GRACE_S = 30.0
"""How long known keys are taken at their word while the database does not answer."""
NO_LIMITS = KeyLimits()

log = logging.getLogger("llmops.serving")


@dataclass(frozen=True)
class Known:
    """A key as requests need it; `expires` in seconds since 1970."""

    principal: Principal
    expires: float


class KeyRing:
    """The live keys of one database. `closed` from the first key that was ever made: then nothing is open without."""

    def __init__(self, keys: Keys, salts: Salts) -> None:
        """Prepare; `open` reads."""
        self.closed = False
        self._keys = keys
        self._salts = salts
        self._known: dict[str, Known] = {}
        self._limits: dict[str, KeyLimits] = {}
        self._cache_salts: dict[str, str] = {}
        self._revision = 0
        self._seen = 0.0
        self._failing = False
        self._task: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Read the keys, and begin to follow them.

        Raises:
            LlmopsError: the database cannot be read.
        """
        await asyncio.to_thread(self._read)
        self._task = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """End following."""
        tasks = [task for task in (self._task, self._next) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def who(self, presented: str) -> Known | None:
        """Whom a key stands for; None when it is none, was revoked or has expired.

        Raises:
            Refusal: 503 when the database did not answer for so long that a revoked key could be taken for a live one.
        """
        kept = token_hash(presented)
        found = self._known.get(kept)
        if found is None and TOKEN.fullmatch(presented):
            await self._look_soon()
            found = self._known.get(kept)
        if time.monotonic() - self._seen > GRACE_S:
            raise Refusal(503, "keys cannot be checked now; try again shortly", None, "keys_unavailable", 5)
        return found if found is not None and time.time() < found.expires else None

    def limits(self, key: str) -> KeyLimits | None:
        """What a key (by id) may use; None: as much as it likes."""
        return self._limits.get(key)

    def cache_salt(self, tenant: str) -> str | None:
        """What parts a tenant's prefix cache from all others'; None while there are no keys."""
        return self._cache_salts.get(tenant)

    # ------------------------------------------------------------ following the database

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await self._look()

    async def _look(self) -> None:
        try:
            await asyncio.to_thread(self._read)
            self._failing = False
        except (LlmopsError, SQLAlchemyError) as error:
            if not self._failing:
                log.error("keys cannot be read: %s", error)
            self._failing = True

    async def _look_soon(self) -> None:
        """Wait for a look that begins after now; all who wait share it."""
        if self._next is None:
            self._next = asyncio.create_task(self._shared_look())
        await asyncio.shield(self._next)

    async def _shared_look(self) -> None:
        await asyncio.sleep(SOONEST_S)
        self._next = None  # whoever comes from here on might come too late for this look
        await self._look()

    def _read(self) -> None:
        """In a thread: read the keys anew if their revision is another."""
        revision = self._keys.revision()
        if revision != self._revision:
            live = self._keys.live()
            tenants = {key.tenant for key in live.keys.values()} - self._cache_salts.keys()
            salts = {tenant: self._salts.digest("cache", tenant) for tenant in tenants}
            self._cache_salts = self._cache_salts | salts
            self._known = {kept: _known(key) for kept, key in live.keys.items()}
            self._limits = {key.id: key.limits for key in live.keys.values() if key.limits != NO_LIMITS}
            self._revision = live.revision
        self.closed = self._revision > 0
        self._seen = time.monotonic()


def _known(key: Key) -> Known:
    expires = float("inf") if key.expires_at is None else datetime.fromisoformat(key.expires_at).timestamp()
    return Known(key.principal, expires)
