"""The engine's side of the relay: a request put to it, and its answer back through an exchange.

What clients ask is bounded by a leash of its own, and a shadow by its own time.
"""

from __future__ import annotations

import asyncio

from llmops.serving.engine_http import Broken, Dropped, NotReached, Pool
from llmops.serving.exchange import Exchange, engine_refusal
from llmops.serving.http import Refusal
from llmops.serving.routes import Side

AWAY = "engine_unavailable"
EMBEDDINGS = "/v1/embeddings"
NO_SUCH_PATH = (404, 405, 501)
MAX_MISSED = 4  # the next replica may have what one that came back has not


class _Missing(Exception):
    """The engine does not know a model that was loaded: one of its replicas came back without."""


class Upstream:
    """The engines, each asked on the side that a request was routed by."""

    def __init__(self) -> None:
        """Connect on first use."""
        self._pool = Pool()

    def close(self) -> None:
        """End all connections; what still runs on one fails."""
        self._pool.close()

    async def ask(self, side: Side, path: str, exchange: Exchange) -> bytes | None:
        """Ask the engine; a stream is relayed here and gives None, else the whole body to send.

        Raises:
            Refusal: the engine refused or is gone; nothing was sent to the client yet.
        """
        retried, n_missed = False, 0
        while True:
            try:
                return await self._once(side, path, exchange)
            except _Missing:
                n_missed += 1
                if n_missed > MAX_MISSED:
                    raise Refusal(503, "the engine does not have this model now", None, AWAY, 2) from None
                await asyncio.sleep(0.02 * n_missed)
                continue
            except Dropped:
                if not (retried or exchange.started):
                    retried = True
                    continue
                failure = _lost()
            except NotReached:
                failure = _lost() if retried else Refusal(503, "the engine is not reachable", None, AWAY, 2)
            except Broken:
                failure = _lost()
            if not exchange.started:
                raise failure
            await exchange.break_off(failure)
            return None

    async def _once(self, side: Side, path: str, exchange: Exchange) -> bytes | None:
        async with await self._pool.post(side.url, path, exchange.data, exchange.passed_on()) as answer:
            if answer.status == 200 and exchange.call.stream:
                await exchange.begin()
                while data := await answer.next():
                    await exchange.relay(data)
                return None
            body = await answer.read()
        if answer.status in NO_SUCH_PATH and path == EMBEDDINGS:
            raise Refusal(404, "the engine here makes no embeddings", None, "unsupported_endpoint")
        if answer.status == 404:
            raise _Missing
        if answer.status != 200:
            raise engine_refusal(answer.status, body)
        return exchange.whole(body)


def _lost() -> Refusal:
    return Refusal(502, "the engine was lost before the answer was whole", code="engine_lost")
