"""The HTTP surface: routes, SSE, and what happens when a client goes away.

aiohttp cancels a handler the moment its connection is lost, in every phase of a request; the handler then
lets go of its rows. So nothing is generated for nobody, whether or not a first token was sent and whether or
not it streams.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from aiohttp import web

from llmops.engines.embedded.adapters import BASE
from llmops.engines.embedded.batcher import Batcher, QueueFull
from llmops.engines.embedded.catalog import Catalog
from llmops.engines.embedded.messages import RequestRefused
from llmops.engines.embedded.prepare import Preparer
from llmops.engines.embedded.protocol import (
    Call,
    ChatRequest,
    CompletionRequest,
    LoadAdapterRequest,
    UnloadAdapterRequest,
    parse,
)
from llmops.engines.embedded.responses import Writer, error_body
from llmops.engines.embedded.row import Progress, Row, RowRequest
from llmops.errors import CouldNotRun

MAX_BODY_BYTES = 16 * 1024 * 1024
RETRY_AFTER_S = 1

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Inbox = asyncio.Queue[tuple[int, Progress]]


class Server:
    """Answers requests from the batcher and the catalog of names."""

    def __init__(self, batcher: Batcher, catalog: Catalog, preparer: Preparer, about: dict[str, str]) -> None:
        """`about` is the body of GET /version."""
        self._batcher = batcher
        self._catalog = catalog
        self._preparer = preparer
        self._about = about

    def app(self) -> web.Application:
        """Return the application with vLLM's routes."""
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/load", self._load)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load_adapter)
        app.router.add_post("/v1/unload_lora_adapter", self._unload_adapter)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return web.Response(status=200 if self._batcher.alive else 503)

    async def _version(self, _request: web.Request) -> web.Response:
        return _json(self._about)

    async def _load(self, _request: web.Request) -> web.Response:
        running, waiting = self._batcher.n_running, self._batcher.n_waiting
        return _json({"server_load": running + waiting, "n_running": running, "n_waiting": waiting})

    async def _models(self, _request: web.Request) -> web.Response:
        return _json({"object": "list", "data": self._catalog.cards()})

    async def _load_adapter(self, request: web.Request) -> web.Response:
        wanted = parse(await _body(request), LoadAdapterRequest)
        # Shielded: an attach that runs to its end unrecorded would occupy a slot for good.
        await asyncio.shield(asyncio.ensure_future(self._catalog.load(wanted)))
        return web.Response(text=f"Success: LoRA adapter '{wanted.lora_name}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        wanted = parse(await _body(request), UnloadAdapterRequest)
        self._catalog.unload(wanted.lora_name)
        return web.Response(text=f"Success: LoRA adapter '{wanted.lora_name}' removed successfully.")

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(await _body(request), ChatRequest)
        name, adapter = self._catalog.resolve(wanted.model)
        return await self._answer(request, self._preparer.chat(wanted), name, adapter)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        wanted = parse(await _body(request), CompletionRequest)
        name, adapter = self._catalog.resolve(wanted.model)
        return await self._answer(request, self._preparer.completion(wanted), name, adapter)

    async def _answer(
        self, request: web.Request, call: Call, name: str, adapter: str = BASE
    ) -> web.StreamResponse:
        inbox: Inbox = asyncio.Queue()
        rows = _rows(call, adapter, inbox)
        if len(rows) > self._batcher.limits.max_waiting:
            raise RequestRefused(
                f"prompt: {len(rows)} answers in one request; at most {self._batcher.limits.max_waiting}",
                "prompt",
            )
        writer = Writer(call, name, self._preparer.tokenizer)
        self._batcher.submit(rows)
        try:
            if call.stream:
                return await _stream(request, writer, inbox, len(rows))
            return _json(writer.whole(await _collect(inbox, len(rows))))
        finally:
            self._batcher.cancel(rows)


def _rows(call: Call, adapter: str, inbox: Inbox) -> list[Row]:
    """One row an answer, in order of index; answers of one prompt draw from seeds counted up, as in vLLM."""
    rows = []
    for index in range(len(call.prompts) * call.n):
        prompt, nth = divmod(index, call.n)
        request = RowRequest(call.prompts[prompt].ids, call.sampling.for_answer(nth), adapter, call.stream)
        rows.append(Row(request, _sink(inbox, index)))
    return rows


def _sink(inbox: Inbox, index: int) -> Callable[[Progress], None]:
    return lambda progress: inbox.put_nowait((index, progress))


async def _collect(inbox: Inbox, n_rows: int) -> list[Progress]:
    """Wait for every row's whole answer; raises EngineBroke when one failed."""
    answers: dict[int, Progress] = {}
    while len(answers) < n_rows:
        index, progress = await inbox.get()
        if progress.error is not None:
            raise EngineBroke(progress.error)
        answers[index] = progress
    return [answers[index] for index in range(n_rows)]


async def _stream(request: web.Request, writer: Writer, inbox: Inbox, n_rows: int) -> web.StreamResponse:
    """Send server-sent events until every row is done; a row that fails ends the stream with an error."""
    index, progress = await inbox.get()
    if progress.error is not None:
        raise EngineBroke(progress.error)
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache"}
    )
    await response.prepare(request)
    if writer.call.chat:
        await response.write(b"".join(_event(writer.role_chunk(i)) for i in range(n_rows)))
    begun: set[int] = set()
    n_open = n_rows
    while True:
        if progress.error is not None:
            await response.write(_event(error_body(progress.error, 500)))
            break
        chunk = writer.chunk(index, progress, first=index not in begun)
        begun.add(index)
        n_open -= progress.finish_reason is not None
        if chunk is not None:
            await response.write(_event(chunk))
        if not n_open:
            if writer.call.include_usage:
                await response.write(_event(writer.usage_chunk()))
            break
        index, progress = await inbox.get()
    await response.write(b"data: [DONE]\n\n")
    return response


class EngineBroke(CouldNotRun):
    """The step that held this row failed."""


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except RequestRefused as error:
        return _json(error_body(str(error), error.status, error.param, error.kind), error.status)
    except QueueFull as error:
        busy = error_body(f"the engine is full: {error}; try again", 503)
        return _json(busy, 503, {"Retry-After": str(RETRY_AFTER_S)})
    except web.HTTPException as error:
        return _json(
            error_body(f"{request.method} {request.path}: {error.reason}", error.status), error.status
        )
    except EngineBroke as error:
        return _json(error_body(str(error), 500), 500)
    except ConnectionResetError:
        raise
    except Exception as error:
        log.exception("%s %s failed", request.method, request.path)
        return _json(error_body(f"{type(error).__name__}: {error}", 500), 500)


async def _body(request: web.Request) -> Any:
    """Return the parsed JSON body; raises RequestRefused for bytes that are not JSON."""
    try:
        return orjson.loads(await request.read())
    except orjson.JSONDecodeError as error:
        raise RequestRefused(f"the request body is not JSON: {error}") from error


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=orjson.dumps(body), status=status, headers=headers, content_type="application/json"
    )


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
