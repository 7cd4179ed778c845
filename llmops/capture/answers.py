"""An engine's answer as bytes, taken apart: the texts of its choices, whether it was whole or streamed.

Runs in the writer's thread once the answer is over, so that the relay parses nothing for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from llmops.schema import JsonDict

_REASONING = ("reasoning_content", "reasoning")


def answers_of(body: bytes, streamed: bool) -> list[JsonDict]:
    """The answers in order of their index: `content`, `finish_reason`, and `reasoning_content`, `tool_calls` if any.

    Args:
        body: the engine's JSON object, or all events of its stream.
        streamed: which of the two.

    Raises:
        ValueError: it is not in OpenAI's form.
    """
    try:
        return _joined(_events(body)) if streamed else [_whole(one) for one in orjson.loads(body)["choices"]]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"not an answer in OpenAI's form: {error!r}") from None


def response_id_of(event: bytes) -> str | None:
    """The `id` of an answer's first event."""
    start = event.find(b"data: {")
    if start < 0:
        return None
    try:
        found = orjson.loads(event[start + 6 :].partition(b"\n\n")[0]).get("id")
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, str) else None


def _events(body: bytes) -> Iterable[JsonDict]:
    for event in body.split(b"\n\n"):
        if event.startswith(b"data: {"):
            yield orjson.loads(event[6:])


def _whole(choice: JsonDict) -> JsonDict:
    said = choice.get("message")
    if said is None:
        return _answer(choice.get("text") or "", choice.get("finish_reason"))
    answer = _answer(said.get("content") or "", choice.get("finish_reason"))
    reasoning = next((said[name] for name in _REASONING if said.get(name)), None)
    return answer | _present(reasoning, said.get("tool_calls"))


def _answer(content: str, finish_reason: str | None) -> JsonDict:
    return {"content": content, "finish_reason": finish_reason}


def _present(reasoning: str | None, calls: Any) -> JsonDict:
    found = {"reasoning_content": reasoning, "tool_calls": calls}
    return {name: value for name, value in found.items() if value}


class _Parts:
    """One choice of a stream while its pieces are gathered."""

    def __init__(self) -> None:
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: dict[int, JsonDict] = {}
        self.finish_reason: str | None = None

    def take(self, choice: JsonDict) -> None:
        """Add what one event says of the choice."""
        said = choice.get("delta") or {}
        if text := said.get("content") or choice.get("text"):
            self.content.append(text)
        for name in _REASONING:
            if said.get(name):
                self.reasoning.append(said[name])
                break
        for piece in said.get("tool_calls") or ():
            self._call(piece)
        self.finish_reason = choice.get("finish_reason") or self.finish_reason

    def _call(self, piece: JsonDict) -> None:
        call = self.calls.setdefault(
            piece.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}}
        )
        if piece.get("id"):
            call["id"] = piece["id"]
        said = piece.get("function") or {}
        call["function"]["name"] += said.get("name") or ""
        call["function"]["arguments"] += said.get("arguments") or ""

    def answer(self) -> JsonDict:
        """The choice as a whole answer has it."""
        calls = [self.calls[i] for i in sorted(self.calls)]
        return _answer("".join(self.content), self.finish_reason) | _present("".join(self.reasoning), calls)


def _joined(events: Iterable[JsonDict]) -> list[JsonDict]:
    choices: dict[int, _Parts] = {}
    for event in events:
        for choice in event.get("choices") or ():
            choices.setdefault(choice["index"], _Parts()).take(choice)
    return [choices[i].answer() for i in sorted(choices)]
