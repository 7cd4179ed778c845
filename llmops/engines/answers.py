"""Requests to an OpenAI endpoint and what its answers say: bodies, texts, tool calls, log-probabilities of a prompt.

Values alone; what sends them is `llmops.engines.endpoint`. An answer that is not whole is an error here, never a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from llmops.engines.decoding import Decoding
from llmops.records import Case, ToolCall
from llmops.schema import JsonDict

SAID_HEADERS = ("model", "prompt-contract", "engine")


@dataclass(frozen=True)
class Said:
    """One whole answer: what was written, how much of it there is, and the digests in its headers."""

    text: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    n_prompt_tokens: int
    n_completion_tokens: int
    headers: dict[str, str | None]
    latency_s: float


@dataclass(frozen=True)
class Likelihood:
    """The natural log of the probability of a text after another, its tokens, and the digests in the headers."""

    logprob: float
    n_tokens: int
    headers: dict[str, str | None]


@dataclass(frozen=True)
class Problem:
    """Why there is no answer; `fatal`: asking again would not help."""

    reason: str
    fatal: bool = False
    wait_s: float = 0.0


def chat_body(model: str, case: Case, turns: Sequence[JsonDict], decoding: Decoding, sample: int) -> JsonDict:
    """A chat request: a case's turns and tools, with all that decides how the answer is decoded."""
    body: JsonDict = {
        "model": model,
        "messages": turns,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_tokens": decoding.max_tokens,
        "seed": decoding.seed + sample,
        "stream": False,
    }
    if case.tools is not None:
        body["tools"] = json.loads(case.tools)
    return body | ({"stop": list(decoding.stop)} if decoding.stop else {})


def echo_body(model: str, token_ids: Sequence[int]) -> JsonDict:
    """A request for the log-probability of each given token, and for no more text."""
    asked = {"model": model, "prompt": [list(token_ids)], "temperature": 0}
    return asked | {"max_tokens": 0, "echo": True, "logprobs": 0}


def said(raw: bytes, headers: dict[str, str | None], latency_s: float) -> Said:
    """The answer in a chat response.

    Raises:
        ValueError, KeyError, TypeError, IndexError: it is not whole.
    """
    data = orjson.loads(raw)  # which refuses a lone surrogate: it could not be stored
    choice, usage = data["choices"][0], data["usage"]
    message = choice["message"]
    calls = tuple(_call(call) for call in message.get("tool_calls") or ())
    text = message.get("content")
    if text is None and calls:
        text = ""
    if not isinstance(text, str):
        raise TypeError(f"content is {type(text).__name__}, not text")
    finish_reason = choice.get("finish_reason")
    return Said(
        text,
        calls,
        None if finish_reason is None else str(finish_reason),
        int(usage["prompt_tokens"]),
        int(usage["completion_tokens"]),
        headers,
        latency_s,
    )


def likelihood(raw: bytes, headers: dict[str, str | None], n_tokens: int, n_last: int) -> Likelihood:
    """The summed log-probability of the last `n_last` of `n_tokens` echoed tokens.

    Raises:
        ValueError, KeyError, TypeError, IndexError: the answer does not hold exactly these, or one that is not finite.
    """
    data = orjson.loads(raw)
    found = data["choices"][0]["logprobs"]["token_logprobs"]
    if len(found) != n_tokens:
        raise ValueError(f"{len(found)} log-probabilities of {n_tokens} tokens")
    logprob = math.fsum(found[-n_last:])
    if not math.isfinite(logprob):
        raise ValueError(f"a log-probability is not finite ({logprob})")
    return Likelihood(logprob, n_last, headers)


def _call(call: Any) -> ToolCall:
    function = call["function"]
    name, arguments, identifier = function["name"], function["arguments"], call.get("id")
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise TypeError("a tool call's name or arguments are not text")
    return ToolCall(name, arguments, None if identifier is None else str(identifier))


def reason_of(raw: bytes) -> str:
    """The message of an OpenAI-style error, else the start of what came."""
    try:
        data = json.loads(raw)
        error = data.get("error", data)
        return storable(str(error.get("message") if isinstance(error, dict) else error)[:500])
    except (ValueError, AttributeError):
        return raw[:200].decode(errors="replace") or "without a word"


def storable(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 file can hold."""
    return text.encode(errors="replace").decode()


def wait_of(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, 30 at most; 0 where it has no such number."""
    return min(float(retry_after), 30.0) if retry_after.replace(".", "", 1).isdecimal() else 0.0
