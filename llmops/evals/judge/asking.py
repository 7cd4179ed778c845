"""Asking a judge: one question and its answer over HTTP, from any OpenAI endpoint, again while it is busy or away."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import aiohttp

from llmops.errors import BadRequest, ConfigError, CouldNotRun
from llmops.evals.judge.config import JudgeConfig
from llmops.evals.judge.prompt import response_schema
from llmops.schema import JsonDict

BUSY = (408, 409, 425, 429, 500, 502, 503, 504)
REFUSED = (401, 403, 404)
NO_SUCH_FORMAT = (400, 422, 501)
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 10.0
MOST_WAIT_S = 60.0  # of what an endpoint itself asks for


@dataclass(frozen=True)
class Reply:
    """What came back: the judge's text, or in `error` why there is none."""

    text: str = ""
    finish_reason: str | None = None
    model: str | None = None
    answered_by: str | None = None
    fingerprint: str | None = None
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    latency_s: float = 0.0
    format: Literal["json_schema", "text"] = "text"
    error: str | None = None


@dataclass(frozen=True)
class _Busy:
    reason: str
    wait_s: float = 0.0


class JudgeClient:
    """A client of the judge's endpoint at `url`; use as an async context manager."""

    def __init__(self, url: str, config: JudgeConfig) -> None:
        """Prepare to ask; connects on first use.

        Raises:
            ConfigError: the variable that shall hold the key is not set.
        """
        self.url, self.config = url.rstrip("/"), config
        self.where = f"judge {config.endpoint.model} at {self.url}"
        name = config.endpoint.api_key_env
        key = os.environ.get(name) if name else None
        if name and not key:
            raise ConfigError(
                f"{self.where}: the environment variable {name} (api_key_env) is not set; set it"
            )
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._schema = None if config.endpoint.output == "text" else response_schema(config)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        connector = aiohttp.TCPConnector(limit=self.config.endpoint.concurrency)
        self._session = aiohttp.ClientSession(headers=self._headers, connector=connector)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(self, prompt: str, repeat: int) -> Reply:
        """The judge's reply to one prompt; `repeat` is added to the seed.

        Raises:
            BadRequest: the endpoint lets nobody in, or has no such model.
            CouldNotRun: it does not answer, however often it is asked within `retry_s`.
        """
        give_up, wait_s = time.monotonic() + self.config.endpoint.retry_s, FIRST_WAIT_S
        while True:
            found = await self._once(prompt, repeat)
            if isinstance(found, Reply):
                return found
            wait_s = max(wait_s, found.wait_s)
            if time.monotonic() + wait_s > give_up:
                raise CouldNotRun(
                    f"{self.where}: does not answer ({found.reason}; asked again for "
                    f"{self.config.endpoint.retry_s:g} s)"
                )
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0) if not found.wait_s else wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)

    async def _once(self, prompt: str, repeat: int) -> Reply | _Busy:
        assert self._session is not None
        schema, started = self._schema, time.monotonic()
        timeout = aiohttp.ClientTimeout(total=self.config.endpoint.answer_s)
        try:
            async with self._session.post(
                f"{self.url}/chat/completions", json=self._body(prompt, repeat, schema), timeout=timeout
            ) as response:
                raw = await response.read()
        except TimeoutError:
            return Reply(error=f"no answer within {timeout.total:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return _Busy(f"connection failed: {type(error).__name__}")
        status, headers = response.status, response.headers
        if status in BUSY:
            return _Busy(f"HTTP {status}: {_words(raw)}", _retry_after(headers.get("retry-after", "")))
        if status in REFUSED:
            raise BadRequest(f"{self.where}: HTTP {status}: {_words(raw)}; correct the judge's endpoint")
        if status in NO_SUCH_FORMAT and schema is not None and self.config.endpoint.output == "auto":
            self._schema = None  # for all further questions
            return await self._once(prompt, repeat)
        if status != 200:
            return Reply(error=f"HTTP {status}: {_words(raw)}")
        return _read(raw, headers.get("x-llmops-model"), time.monotonic() - started, schema is not None)

    def _body(self, prompt: str, repeat: int, schema: JsonDict | None) -> JsonDict:
        decoding = self.config.decoding
        body: JsonDict = {
            "model": self.config.endpoint.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "max_tokens": decoding.max_tokens,
            "seed": decoding.seed + repeat,
            "stream": False,
        }
        if decoding.stop:
            body["stop"] = list(decoding.stop)
        if schema is not None:
            asked = {"name": "judgement", "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": asked}
        return body


def _read(raw: bytes, answered_by: str | None, latency_s: float, held: bool) -> Reply | _Busy:
    """The reply in an answer's body; a judge that refuses, or was stopped by a filter, says nothing."""
    try:
        data: Any = json.loads(raw)
        choice, usage = data["choices"][0], data.get("usage") or {}
        message, finish = choice["message"], choice.get("finish_reason")
        text = _storable(message.get("content") or "")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        return _Busy(f"malformed answer: {type(error).__name__}: {raw[:200]!r}")
    error_ = None
    if message.get("refusal"):
        error_ = f"the judge refused: {_storable(message['refusal'])[:200]}"
    elif finish == "content_filter":
        error_ = "the judge was stopped by a content filter"
    return Reply(
        text=text,
        finish_reason=None if finish is None else _storable(finish),
        model=_known(data.get("model")),
        answered_by=_known(answered_by),
        fingerprint=_known(data.get("system_fingerprint")),
        n_prompt_tokens=_count(usage.get("prompt_tokens")),
        n_completion_tokens=_count(usage.get("completion_tokens")),
        latency_s=round(latency_s, 4),
        format="json_schema" if held else "text",
        error=error_,
    )


def _known(value: object) -> str | None:
    return None if value is None else _storable(value)


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _storable(value: object) -> str:
    """Text without lone surrogates, which no UTF-8 file can hold."""
    return str(value).encode(errors="replace").decode()


def _words(raw: bytes) -> str:
    """The message of an OpenAI error, else the start of what came."""
    try:
        found: Any = json.loads(raw)
        error = found.get("error", found)
        return _storable(error.get("message") or error)[:300]
    except (ValueError, AttributeError):
        return raw[:300].decode(errors="replace") or "without a word"


def _retry_after(value: str) -> float:
    return min(float(value), MOST_WAIT_S) if value.replace(".", "", 1).isdecimal() else 0.0
