"""The engine's side of the relay: a request put to it, and its answer back through an exchange.

One connection pool. What clients ask is bounded by a leash of its own.
"""

from __future__ import annotations

import asyncio

import aiohttp

from llmops.serving.exchange import Exchange, engine_refusal
from llmops.serving.http import Refusal
from llmops.serving.routes import Live

ENGINE_HEADERS = {"content-type": "application/json", "accept-encoding": "identity"}
KEEPALIVE_S = 3.0  # below the 5 s after which vLLM closes an idle connection
LEASH_FIRST_S = 5.0  # a leash, where there is one, ends a request that takes too long before this pool does
AWAY = "engine_unavailable"
EMBEDDINGS = "/v1/embeddings"
NO_SUCH_PATH = (404, 405, 501)
MAX_MISSED = 4  # the next replica may have what one that came back has not


class _Missing(Exception):
    """The engine does not know a model that was loaded: one of its replicas came back without."""


class Upstream:
    """Whatever engine `live` points at."""

    def __init__(self, live: Live, answer_s: float) -> None:
        """`answer_s` bounds one answer also where no leash does. Call `open` in the event loop."""
        self._live = live
        self._timeout = aiohttp.ClientTimeout(total=answer_s + LEASH_FIRST_S, sock_connect=5)
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make the connection pool."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S),
            timeout=self._timeout,
            headers=ENGINE_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close the pool; what still runs on it fails."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, path: str, exchange: Exchange) -> bytes | None:
        """Ask the engine; a stream is relayed here and gives None, else the whole body to send.

        Raises:
            Refusal: the engine refused or is gone; nothing was sent to the client yet.
        """
        retried, n_missed = False, 0
        while True:
            try:
                return await self._once(path, exchange)
            except _Missing:
                n_missed += 1
                if n_missed > MAX_MISSED:
                    raise Refusal(503, "the engine does not have this model now", None, AWAY, 2) from None
                await asyncio.sleep(0.02 * n_missed)
                continue
            except aiohttp.ServerDisconnectedError:
                if not (retried or exchange.started):
                    retried = True  # most likely an idle connection that the engine had closed
                    continue
                failure = _lost()
            except aiohttp.ClientConnectorError:
                failure = _lost() if retried else Refusal(503, "the engine is not reachable", None, AWAY, 2)
            except (aiohttp.ClientError, OSError):
                failure = _lost()
            if not exchange.started:
                raise failure
            await exchange.break_off(failure)
            return None

    async def _once(self, path: str, exchange: Exchange) -> bytes | None:
        assert self._session is not None
        url = self._live.engine_url + path
        async with self._session.post(url, data=exchange.data, headers=exchange.passed_on()) as answer:
            if answer.status == 200 and exchange.call.stream:
                await exchange.begin()
                async for data in answer.content.iter_any():
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
