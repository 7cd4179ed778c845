"""The endpoint as a client sees it: who serves, loading of adapters, one question and its answer.

The only way from a case to a completion, to be scored or to be rated: an OpenAI endpoint with llmops' headers. What is
not a whole answer by the expected engine is `errored`, with the reason, and never a text to score or to show.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any, Self, TypeVar

import aiohttp
import orjson

from llmops.engines.answered import System as System
from llmops.engines.answered import completion, errored
from llmops.engines.answers import (
    SAID_HEADERS,
    Likelihood,
    Problem,
    Said,
    chat_body,
    echo_body,
    likelihood,
    reason_of,
    said,
    storable,
    wait_of,
)
from llmops.engines.decoding import Decoding
from llmops.errors import BadRequest, CouldNotRun, EngineFailed, InvalidEvidence, LlmopsError
from llmops.records import Case, Completion, EngineSignature
from llmops.schema import JsonDict, digest_of, short
from llmops.settings import api_headers

RETRIED = (429, 502, 503, 504)
OVERLOADED = (429, 503)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 5.0
CONTROL_TIMEOUT_S = 300.0  # loading an adapter may wait for an engine to restart

T = TypeVar("T")


@dataclass(frozen=True)
class EndpointStatus:
    """What the endpoint says of itself."""

    engine: EngineSignature
    base: System


@dataclass(frozen=True)
class Patience:
    """How long is waited: for one whole answer, and for a busy or missing endpoint before it is given up."""

    answer_s: float = 600.0
    retry_s: float = 60.0


class Endpoint:
    """A client of one endpoint; use as an async context manager.

    `n_given_up` counts questions in a row that no retry could get answered: many mean that the endpoint is
    gone. `n_overloaded` counts answers that the endpoint had too much to do for.
    """

    def __init__(self, url: str, n_connections: int, patience: Patience) -> None:
        """Prepare to talk to the endpoint at `url` (`http://HOST:PORT`); connects on first use."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.n_given_up = 0
        self.n_overloaded = 0
        self._patience = patience
        self._timeout = aiohttp.ClientTimeout(total=patience.answer_s)
        self._n_connections = n_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        connector = aiohttp.TCPConnector(limit=self._n_connections)
        jar, headers = aiohttp.DummyCookieJar(), {"content-type": "application/json", **api_headers()}
        self._session = aiohttp.ClientSession(connector=connector, headers=headers, cookie_jar=jar)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def status(self) -> EndpointStatus:
        """The engine's signature and the base model, as the endpoint tells them now.

        Raises:
            CouldNotRun: nothing answers there, or not in this form.
        """
        data = await self._control("GET", "/llmops/status")
        try:
            known = {f.name for f in fields(EngineSignature)}
            engine = EngineSignature(**{k: v for k, v in data["engine"].items() if k in known})
            base = data["base"]
            return EndpointStatus(engine, System(base["model"], base["digest"], base["prompt_contract"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise CouldNotRun(
                f"endpoint {self.url}: /llmops/status has no usable engine and base ({error!r}); "
                "start `llmops serve`"
            ) from None

    async def load_adapter(self, reference: str) -> str:
        """Have an adapter loaded and proved; returns the digest the endpoint says it is.

        Raises:
            BadRequest: there is no such adapter, or it cannot be loaded there; carries the endpoint's reason.
            InvalidEvidence: its files or its proof do not hold; carries the endpoint's reason.
            CouldNotRun: nothing answers, or the engine failed.
        """
        data = await self._control("POST", "/llmops/adapters", {"adapter": reference})
        return str(data.get("adapter"))

    async def models(self) -> list[str]:
        """Names the endpoint answers to."""
        data = await self._control("GET", "/v1/models")
        return [str(model["id"]) for model in data["data"]]

    async def ask(
        self, system: System, case: Case, decoding: Decoding, engine: str, sample: int = 0
    ) -> Completion:
        """One case put to one system, turn by turn, each asked again while the endpoint is busy or away.

        Retries end after `Patience.retry_s`. `engine` is the digest of the engine signature that has to
        answer; `sample` is added to the seed.
        """
        turns = [m.to_turn() for m in case.messages]
        answers: list[Said] = []
        started = time.monotonic()
        for follow_up in ("", *case.follow_ups):
            if follow_up:
                turns += [
                    {"role": "assistant", "content": answers[-1].text},
                    {"role": "user", "content": follow_up},
                ]
            body = chat_body(system.model, case, turns, decoding, sample)
            found = await self._asked("/v1/chat/completions", body, said)
            problem = found.reason if isinstance(found, Problem) else _foreign(found.headers, engine)
            if isinstance(found, Problem) or problem:
                return errored(system, case, sample, problem, time.monotonic() - started)
            answers.append(found)
        return completion(system, case, sample, answers)

    async def likelihood(
        self, system: System, token_ids: Sequence[int], n_last: int, engine: str
    ) -> Likelihood | Problem:
        """How probable a system finds the last `n_last` of some tokens after those before them; retried as `ask` is."""

        def read(raw: bytes, headers: dict[str, str | None], _latency_s: float) -> Likelihood:
            return likelihood(raw, headers, len(token_ids), n_last)

        found = await self._asked("/v1/completions", echo_body(system.model, token_ids), read)
        if isinstance(found, Problem):
            return found
        if wrong := _foreign(found.headers, engine):
            return Problem(wrong, fatal=True)
        if found.headers["model"] != system.digest:
            return Problem(
                f"answered by {short(found.headers['model'] or 'a model without a name')}", fatal=True
            )
        return found

    async def _asked(self, path: str, body: JsonDict, read: Callable[..., T]) -> T | Problem:
        """What `read` makes of the answer to a request, sent again until it is answered or given up."""
        data = orjson.dumps(body)
        give_up, wait_s = time.monotonic() + self._patience.retry_s, FIRST_WAIT_S
        while True:
            found = await self._asked_once(path, data, read)
            if not isinstance(found, Problem):
                self.n_given_up = 0
                return found
            if found.fatal or time.monotonic() + wait_s > give_up:
                self.n_given_up += not found.fatal
                return found
            await asyncio.sleep(max(found.wait_s, wait_s * random.uniform(0.5, 1.0)))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _asked_once(self, path: str, data: bytes, read: Callable[..., T]) -> T | Problem:
        assert self._session is not None
        started = time.monotonic()
        try:
            async with self._session.post(self.url + path, data=data, timeout=self._timeout) as response:
                raw = await response.read()
        except TimeoutError:
            self.n_overloaded += 1
            return Problem(f"no answer within {self._patience.answer_s:g} s", fatal=True)
        except (aiohttp.ClientError, OSError) as error:
            return Problem(f"connection failed: {type(error).__name__}")
        if response.status in RETRIED:
            self.n_overloaded += response.status in OVERLOADED
            return Problem(
                f"HTTP {response.status}: {reason_of(raw)}",
                wait_s=wait_of(response.headers.get("retry-after", "")),
            )
        if response.status != 200:
            return Problem(f"HTTP {response.status}: {reason_of(raw)}", fatal=True)
        headers = {name: _header(response, f"x-llmops-{name}") for name in SAID_HEADERS}
        try:
            return read(raw, headers, time.monotonic() - started)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            return Problem(f"malformed answer: {type(error).__name__}: {error}")

    async def _control(self, method: str, path: str, body: JsonDict | None = None) -> Any:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=CONTROL_TIMEOUT_S)
        where = f"endpoint {self.url}"
        try:
            async with self._session.request(method, self.url + path, json=body, timeout=timeout) as response:
                raw = await response.read()
        except TimeoutError:
            raise EngineFailed(
                f"{where}: {path} took over {timeout.total:g} s; see the engine's log"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CouldNotRun(
                f"{where}: does not answer ({type(error).__name__}); "
                "start `llmops serve`, or correct the address"
            ) from None
        if response.status != 200:
            raise _control_error(
                response.status, f"{where}: {path} answered {response.status}: {reason_of(raw)}"
            )
        try:
            return json.loads(raw)
        except ValueError:
            raise CouldNotRun(f"{where}: {path} answered no JSON; start `llmops serve`") from None


def _foreign(headers: dict[str, str | None], engine: str) -> str:
    """Which other engine answered; empty when it was the right one."""
    found = headers["engine"]
    if found == engine:
        return ""
    who = f"engine {short(found)}" if found else "an engine that does not say which it is"
    return f"answered by {who}, not by {short(engine)}"


def _header(response: aiohttp.ClientResponse, name: str) -> str | None:
    value = response.headers.get(name)
    return None if value is None else storable(value)


def _control_error(status: int, said: str) -> LlmopsError:
    """What a refused control request means: the endpoint's own word stands in `said`."""
    if status == 422:
        return InvalidEvidence(said)
    if status in (401, 403):
        return BadRequest(f"{said}; set LLMOPS_API_KEY to an operator's key (`llmops key create`)")
    if status >= 500:
        return EngineFailed(f"{said}; see the engine's log")
    return BadRequest(f"{said}; correct the adapter, or give the address of an `llmops serve`")


def engine_digest(engine: EngineSignature) -> str:
    """The digest of an engine's signature, as the header x-llmops-engine carries it."""
    return digest_of(engine.to_pairs())
