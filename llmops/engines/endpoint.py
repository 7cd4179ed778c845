"""The endpoint as a client sees it: who serves, loading of adapters, one question and its answer.

The only way from a case to a completion, to be scored or to be rated: an OpenAI endpoint with llmops' headers. What is
not a whole answer by the expected engine is `errored`, with the reason, and never a text to score or to show.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any, Self

import aiohttp

from llmops.engines.decoding import Decoding
from llmops.errors import BadRequest, CouldNotRun, EngineFailed, InvalidEvidence, LlmopsError
from llmops.records import Case, Completion, EngineSignature
from llmops.schema import JsonDict, digest_of, short

RETRIED = (429, 502, 503, 504)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 5.0
SAID_HEADERS = ("model", "prompt-contract", "engine")
CONTROL_TIMEOUT_S = 300.0  # loading an adapter may wait for an engine to restart


@dataclass(frozen=True)
class System:
    """Something that answers: its name at the endpoint, and the digests its answers must carry."""

    model: str
    digest: str
    prompt_contract: str


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
    gone.
    """

    def __init__(self, url: str, n_connections: int, patience: Patience) -> None:
        """Prepare to talk to the endpoint at `url` (`http://HOST:PORT`); connects on first use."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.n_given_up = 0
        self._patience = patience
        self._n_connections = n_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        connector = aiohttp.TCPConnector(limit=self._n_connections)
        self._session = aiohttp.ClientSession(connector=connector)
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
        """One case put to one system, asked again while the endpoint is busy or away.

        Retries end after `Patience.retry_s`. `engine` is the digest of the engine signature that has to
        answer; `sample` is added to the seed.
        """
        body = _body(system, case, decoding, sample)
        give_up, wait_s = time.monotonic() + self._patience.retry_s, FIRST_WAIT_S
        while True:
            started = time.monotonic()
            found = await self._ask_once(body)
            if isinstance(found, _Answer):
                self.n_given_up = 0
                return replace(
                    _completion(system, case, found, engine, time.monotonic() - started), sample=sample
                )
            if found.fatal or time.monotonic() + wait_s > give_up:
                self.n_given_up += not found.fatal
                return replace(
                    _errored(system, case, found.reason, time.monotonic() - started), sample=sample
                )
            await asyncio.sleep(max(found.wait_s, wait_s * random.uniform(0.5, 1.0)))
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _ask_once(self, body: JsonDict) -> _Answer | _Problem:
        assert self._session is not None
        timeout = aiohttp.ClientTimeout(total=self._patience.answer_s)
        url = f"{self.url}/v1/chat/completions"
        try:
            async with self._session.post(url, json=body, timeout=timeout) as response:
                raw = await response.read()
        except TimeoutError:
            return _Problem(f"no answer within {self._patience.answer_s:g} s", fatal=True)
        except (aiohttp.ClientError, OSError) as error:
            return _Problem(f"connection failed: {type(error).__name__}")
        if response.status in RETRIED:
            return _Problem(f"HTTP {response.status}: {_reason(raw)}", wait_s=_retry_after(response))
        if response.status != 200:
            return _Problem(f"HTTP {response.status}: {_reason(raw)}", fatal=True)
        headers = {name: _header(response, f"x-llmops-{name}") for name in SAID_HEADERS}
        try:
            return _parsed(raw, headers)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return _Problem(f"malformed answer: {type(error).__name__}: {error}")

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
                response.status, f"{where}: {path} answered {response.status}: {_reason(raw)}"
            )
        try:
            return json.loads(raw)
        except ValueError:
            raise CouldNotRun(f"{where}: {path} answered no JSON; start `llmops serve`") from None


@dataclass(frozen=True)
class _Answer:
    text: str
    finish_reason: str | None
    n_prompt_tokens: int
    n_completion_tokens: int
    headers: dict[str, str | None]


@dataclass(frozen=True)
class _Problem:
    """Why there is no answer; `fatal`: asking again would not help."""

    reason: str
    fatal: bool = False
    wait_s: float = 0.0


def _body(system: System, case: Case, decoding: Decoding, sample: int) -> JsonDict:
    body: JsonDict = {
        "model": system.model,
        "messages": [m.to_turn() for m in case.messages],
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_tokens": decoding.max_tokens,
        "seed": decoding.seed + sample,
        "stream": False,
    }
    return body | ({"stop": list(decoding.stop)} if decoding.stop else {})


def _parsed(raw: bytes, headers: dict[str, str | None]) -> _Answer:
    data = json.loads(raw)
    choice, usage = data["choices"][0], data["usage"]
    text = choice["message"]["content"]
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}, not text")
    text.encode()  # a lone surrogate could not be stored
    counts = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    finish_reason = choice.get("finish_reason")
    return _Answer(text, None if finish_reason is None else _storable(str(finish_reason)), *counts, headers)


def _completion(system: System, case: Case, answer: _Answer, engine: str, latency_s: float) -> Completion:
    found = answer.headers["engine"]
    if found != engine:
        who = f"engine {short(found)}" if found else "an engine that does not say which it is"
        return _errored(system, case, f"answered by {who}, not by {short(engine)}", latency_s)
    return Completion(
        case=case.digest,
        system=system.model,
        status="answered",
        text=answer.text,
        finish_reason=answer.finish_reason,
        n_prompt_tokens=answer.n_prompt_tokens,
        n_completion_tokens=answer.n_completion_tokens,
        latency_s=round(latency_s, 4),
        answered_by=answer.headers["model"],
        prompt_contract=answer.headers["prompt-contract"],
    )


def _errored(system: System, case: Case, reason: str, latency_s: float) -> Completion:
    return Completion(
        case.digest, system.model, "errored", "", None, 0, 0, round(latency_s, 4), None, None, reason
    )


def _reason(raw: bytes) -> str:
    """The message of an OpenAI-style error, else the start of what came."""
    try:
        data = json.loads(raw)
        error = data.get("error", data)
        return _storable(str(error.get("message") if isinstance(error, dict) else error)[:500])
    except (ValueError, AttributeError):
        return raw[:200].decode(errors="replace") or "without a word"


def _header(response: aiohttp.ClientResponse, name: str) -> str | None:
    value = response.headers.get(name)
    return None if value is None else _storable(value)


def _control_error(status: int, said: str) -> LlmopsError:
    """What a refused control request means: the endpoint's own word stands in `said`."""
    if status == 422:
        return InvalidEvidence(said)
    if status >= 500:
        return EngineFailed(f"{said}; see the engine's log")
    return BadRequest(f"{said}; correct the adapter, or give the address of an `llmops serve`")


def _storable(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 file can hold."""
    return text.encode(errors="replace").decode()


def _retry_after(response: aiohttp.ClientResponse) -> float:
    value = response.headers.get("retry-after", "")
    return min(float(value), 30.0) if value.replace(".", "", 1).isdecimal() else 0.0


def engine_digest(engine: EngineSignature) -> str:
    """The digest of an engine's signature, as the header x-llmops-engine carries it."""
    return digest_of(engine.to_pairs())
