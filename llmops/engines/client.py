"""What the gateway asks an engine besides relaying: health, version, adapters, log-probabilities of given
texts.

One client an engine, over HTTP to its OpenAI endpoint; both engine kinds answer alike. Starts and stops
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from llmops.errors import BadRequest, EngineFailed

ASK_TIMEOUT_S = 10.0
WORK_TIMEOUT_S = (
    180.0  # loading an adapter or scoring probes waits for the running step, and for requests before it
)
_CALLERS_FAULT = (400, 404, 413, 422)


class EngineClient:
    """The control side of one engine at `url`. Use as an async context manager, or call `close`."""

    def __init__(self, url: str) -> None:
        """Prepare to talk to the engine at `url` (`http://127.0.0.1:PORT`); connects on first use."""
        self.url = url.rstrip("/")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections."""
        await self.close()

    async def close(self) -> None:
        """Close the connections; the client can be used again."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def healthy(self) -> bool:
        """Whether the engine says it can serve; False also when nothing answers."""
        try:
            await self._ask("GET", "/health")
        except (EngineFailed, BadRequest):
            return False
        return True

    async def version(self) -> str:
        """The engine's version, as it stands in signatures."""
        answer = await self._ask("GET", "/version")
        version = answer.get("version") if isinstance(answer, dict) else None
        if not isinstance(version, str):
            raise EngineFailed(f"engine {self.url}: /version answered {answer!r} where a version is needed")
        return version

    async def models(self) -> list[str]:
        """Names that are served: the base first, then the loaded adapters."""
        return [str(card["id"]) for card in await self.cards()]

    async def cards(self) -> list[dict[str, Any]]:
        """The model cards of what is served, as OpenAI has them."""
        answer = await self._ask("GET", "/v1/models")
        try:
            cards: list[dict[str, Any]] = answer["data"]
            if all("id" in card for card in cards):
                return cards
        except (KeyError, TypeError):
            pass
        raise EngineFailed(f"engine {self.url}: /v1/models answered {answer!r:.200} where a list is needed")

    async def load_adapter(self, name: str, path: Path, seen_as: Path | None = None) -> None:
        """Load the adapter files in `path`, which the engine sees as `seen_as`, under a name that is not in use.

        Names are immutable: weights are never swapped under one, which would change running streams and leave
        stale prefix caches. The files must stay where they are while the engine lives: vLLM reads an evicted
        adapter again.

        Raises:
            BadRequest: no adapter there, or the name is taken.
            EngineFailed: the engine refused it; carries the engine's own reason.
        """
        folder = path.absolute()
        if not (
            folder / "adapter_config.json"
        ).is_file():  # vLLM takes a path that is not there for a hub's id
            raise BadRequest(
                f"adapter {name}: {folder} has no adapter_config.json; give the folder of an adapter"
            )
        body = {"lora_name": name, "lora_path": str(seen_as or folder)}
        await self._ask("POST", "/v1/load_lora_adapter", body)

    async def unload_adapter(self, name: str) -> None:
        """Forget an adapter's name; requests that run go on.

        Raises:
            BadRequest: no such adapter.
        """
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def warm_up(self, model: str, token_ids: Sequence[int]) -> None:
        """Have one token generated, so that the first client does not wait for what a model's first step sets up.

        Raises:
            EngineFailed, BadRequest: the engine does not generate under that name.
        """
        body = {"model": model, "prompt": list(token_ids), "max_tokens": 1, "temperature": 0}
        await self._ask("POST", "/v1/completions", body)

    async def prompt_logprobs(self, model: str, token_ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Teacher-forced natural log-probabilities of each token after the first.

        Args:
            model: the base's or an adapter's name.
            token_ids: N sequences of T_i >= 2 token ids.

        Returns:
            N lists of T_i - 1 numbers, the one at t for token t + 1 given tokens 0..t.

        Raises:
            BadRequest: an unknown model, ids out of the vocabulary, or a sequence over the engine's limit.
            EngineFailed: the answer does not have that shape, or holds a number that is not finite.
        """
        if not token_ids or any(len(ids) < 2 for ids in token_ids):
            raise BadRequest("prompt_logprobs: every sequence needs two tokens or more; give longer ones")
        body = {"model": model, "prompt": [list(ids) for ids in token_ids], "max_tokens": 0, "echo": True}
        answer = await self._ask("POST", "/v1/completions", body | {"logprobs": 0, "temperature": 0})
        rows = _echoed(answer, [len(ids) for ids in token_ids])
        if rows is None or answer.get("model") != model:
            raise EngineFailed(f"engine {self.url}: no log-probabilities of {model} in {str(answer)[:300]}")
        return rows

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The answer's JSON (its text when it is none)."""
        if self._session is None:
            self._session = aiohttp.ClientSession()
        timeout = aiohttp.ClientTimeout(total=ASK_TIMEOUT_S if body is None else WORK_TIMEOUT_S)
        try:
            async with self._session.request(method, self.url + path, json=body, timeout=timeout) as answer:
                text = await answer.text()
                value = await answer.json() if answer.content_type == "application/json" and text else text
        except TimeoutError:
            raise EngineFailed(
                f"engine {self.url}: {path} took over {timeout.total:g} s; see the engine's log"
            ) from None
        except (aiohttp.ClientError, ValueError) as error:
            raise EngineFailed(
                f"engine {self.url}: {path} was not answered ({error}); see the engine's log"
            ) from error
        if answer.status == 200:
            return value
        said = f"engine {self.url}: {path} answered {answer.status}: {_reason(value)}"
        raise (BadRequest if answer.status in _CALLERS_FAULT else EngineFailed)(said)


def _reason(value: Any) -> str:
    """The message of an OpenAI-style error, else the start of what came."""
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or error)[:500] or "without a word"


def _echoed(answer: Any, n_tokens: list[int]) -> list[list[float]] | None:
    """Log-probabilities by prompt, or None where the answer does not hold exactly these."""
    try:
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        rows = [
            choice["logprobs"]["token_logprobs"][1:n] for choice, n in zip(choices, n_tokens, strict=True)
        ]
    except (KeyError, TypeError, ValueError):
        return None
    for row, n in zip(rows, n_tokens, strict=True):
        if len(row) != n - 1 or not all(isinstance(x, int | float) and math.isfinite(x) for x in row):
            return None
    return [[float(x) for x in row] for row in rows]
