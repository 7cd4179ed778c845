"""What is known of a served response, its texts where they were kept, and what was said of it.

Frozen values, read from the tables by `llmops.capture.reading`; nothing here touches the database.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from llmops.data.formats.turns import text_of, tool_calls_of, tools_of, turns_of
from llmops.records import Message, ToolCall
from llmops.schema import JsonDict, canonical_json

Thumb = Literal["up", "down"]
GOOD_SCORE, BAD_SCORE = 4, 2
"""Scores from which, and up to which, an answer counts as good and as bad."""


@dataclass(frozen=True)
class Served:
    """Which model gave a response: kept for every response id, without texts.

    `user` is a mark (`Keyring.mark`), never the id a client sent. `shadow_of` is the response that was shown in the
    place of this one, which nobody saw. `complete`: the answer came to its end.
    """

    response: str  # the id the client saw
    at: str
    tenant: str
    user: str | None
    asked: str  # the model name of the request
    adapter: str  # digest of the adapter or base that answered
    lineage: str | None
    arm: str | None
    shadow_of: str | None
    n_answers: int
    complete: bool


@dataclass(frozen=True)
class Answer:
    """One of a response's answers."""

    content: str
    finish_reason: str | None
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True)
class Interaction:
    """A response with its texts, as they were redacted.

    `messages` is what was asked, as the client sent it: without the prompt contract's system turn. `problem` says
    (`class: detail`) why there are no messages or answers: a plain completion, or a text that cannot be read.
    """

    served: Served
    messages: tuple[Message, ...]
    answers: tuple[Answer, ...]
    tools: str | None = None  # canonical JSON, as in `Row`
    problem: str | None = None

    @property
    def response(self) -> str:
        """The id the client saw."""
        return self.served.response

    @property
    def adapter(self) -> str:
        """Digest of what answered."""
        return self.served.adapter

    @property
    def answer(self) -> str:
        """The text of the first answer."""
        return self.answers[0].content if self.answers else ""


@dataclass(frozen=True)
class Feedback:
    """What somebody said of a response: at least one of thumb, score, comment, correction, or a preference.

    `over` is the response whose answer `over_choice` this one's answer `choice` was preferred to. Texts are None when
    they were not read. `number` counts all feedback of the database from 1.
    """

    number: int
    id: str
    served: Served
    choice: int
    user: str | None  # who says it: a mark
    at: str
    thumb: Thumb | None = None
    score: int | None = None  # 1 to 5
    comment: str | None = None
    correction: str | None = None
    over: Served | None = None
    over_choice: int = 0
    corrected: bool = False  # it has a correction, whether that was read or not

    @property
    def good(self) -> bool | None:
        """Whether it calls the answer good or bad; None when it says neither."""
        if self.thumb is not None:
            return self.thumb == "up"
        if self.score is None or BAD_SCORE < self.score < GOOD_SCORE:
            return None
        return self.score >= GOOD_SCORE


@dataclass(frozen=True)
class Given:
    """A durable feedback: its id, and whether it had been stored before."""

    id: str
    served: Served
    repeated: bool


def texts_of_call(body: Mapping[str, Any]) -> JsonDict:
    """What is kept of a request's body: the prompt, and the functions that may be called."""
    return {name: body[name] for name in ("messages", "prompt", "tools") if body.get(name) is not None}


def interaction_of(served: Served, payload: bytes) -> Interaction:
    """The interaction that a decrypted payload spells; what is no conversation has a `problem`."""
    data = orjson.loads(payload)
    answers = tuple(_answer(one) for one in data["answers"])
    if "messages" not in data:
        return Interaction(served, (), answers, problem="no conversation: a plain completion")
    try:
        messages = turns_of(data["messages"], "messages")
        found = tools_of(data.get("tools"))
    except ValueError as error:
        return Interaction(served, (), answers, problem=str(error))
    tools = canonical_json(found).decode() if found else None
    return Interaction(served, messages, answers, tools)


def unreadable(served: Served, problem: str) -> Interaction:
    """An interaction whose texts cannot be read."""
    return Interaction(served, (), (), problem=problem)


def _answer(data: JsonDict) -> Answer:
    try:
        calls = tool_calls_of(data["tool_calls"], "tool_calls") if data.get("tool_calls") else ()
    except ValueError:
        calls = ()
    content = text_of(data["content"], "content")
    return Answer(content, data.get("finish_reason"), data.get("reasoning_content"), calls)
