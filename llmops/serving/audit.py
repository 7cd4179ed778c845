"""Who changed what over HTTP: one event of the ledger for every call that operators make to change something."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from llmops.ledger import Ledger
from llmops.records import Principal
from llmops.schema import JsonDict
from llmops.serving.http import ClientGone, Refusal

DONE, CLIENT_CLOSED, FAULT = 200, 499, 500


@dataclass(frozen=True)
class Acted:
    """What an operator's call answers, and the ids of what it touched."""

    answer: JsonDict
    ids: dict[str, str]


class Audit:
    """Writes `admin.called`: the key's id and role, the call, its status, and the ids of what it was about."""

    def __init__(self, ledger: Ledger) -> None:
        """Write into a ledger."""
        self._ledger = ledger

    async def call(self, principal: Principal, what: str, act: Awaitable[Acted]) -> JsonDict:
        """Do what was asked and write down how it ended; the answer is sent only after that.

        Raises:
            StoreError: the ledger did not take it.
        """
        status, ids = FAULT, {}
        try:
            acted = await act
            status, ids = DONE, acted.ids
            return acted.answer
        except Refusal as refusal:
            status = refusal.status
            raise
        except ClientGone:
            status = CLIENT_CLOSED
            raise
        finally:
            body = {"key": principal.key, "role": principal.role, "call": what, "status": status, **ids}
            await asyncio.shield(asyncio.to_thread(self._ledger.append, "admin.called", body))
