"""Conversations, rows and dataset snapshots."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from llmops.schema import JsonDict, Record


@dataclass(frozen=True)
class ToolCall:
    """A function the assistant asks to be called; `arguments` is a JSON object as text, as OpenAI's API has it."""

    name: str
    arguments: str
    id: str | None = None


@dataclass(frozen=True)
class Message:
    """One turn of a conversation; `role` is system, user, assistant or tool.

    An assistant's turn may carry its `reasoning` and `tool_calls` (with them `content` may be empty); a tool's turn
    says which call it answers in `tool_call_id`, or the function's `name`.
    """

    role: str
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None

    def to_turn(self) -> JsonDict:
        """The turn in OpenAI's form; what it does not have is left out.

        >>> Message("user", "hi").to_turn()
        {'role': 'user', 'content': 'hi'}
        """
        turn: JsonDict = {"role": self.role, "content": self.content}
        if self.reasoning is not None:
            turn["reasoning_content"] = self.reasoning
        if self.tool_calls:
            turn["tool_calls"] = [
                {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                | ({"id": call.id} if call.id is not None else {})
                for call in self.tool_calls
            ]
        extra = {"tool_call_id": self.tool_call_id, "name": self.name}
        return turn | {field: value for field, value in extra.items() if value is not None}

    @classmethod
    def of_turn(cls, turn: JsonDict) -> Message:
        """The message that `to_turn` spelt; nothing is checked."""
        calls = tuple(
            ToolCall(call["function"]["name"], call["function"]["arguments"], call.get("id"))
            for call in turn.get("tool_calls", ())
        )
        rest = (turn.get(field) for field in ("tool_call_id", "name"))
        return cls(turn["role"], turn["content"], turn.get("reasoning_content"), calls, *rest)

    @property
    def spelling(self) -> list[Any]:
        """What digests of prompts and conversations are made of; plain turns are `[role, content]`."""
        turn = self.to_turn()
        plain = [turn.pop("role"), turn.pop("content")]
        return [*plain, turn] if turn else plain


@dataclass(frozen=True)
class Row:
    """One training or evaluation example: a conversation that ends with the assistant's answer.

    `group` is what pools are split by (rows of one group never land in two pools); `source` is `file:line`. `tools` is
    the canonical JSON of the functions the assistant may call, a list in OpenAI's form; None without any.
    """

    messages: tuple[Message, ...]
    group: str
    source: str
    tools: str | None = None


@dataclass(frozen=True)
class Labelled:
    """An answer that was judged alone: `good` says how. What KTO learns from; `group` and `source` as in `Row`."""

    messages: tuple[Message, ...]
    completion: str
    good: bool
    group: str
    source: str


@dataclass(frozen=True)
class Dropped:
    """A row that was not kept: where it stood, why (`class: detail`), and its own text, so that it can be mended."""

    source: str
    reason: str
    row: str | None = field(default=None, compare=False)

    @property
    def kind(self) -> str:
        """The class of reasons it is counted under."""
        return self.reason.partition(":")[0]


@dataclass(frozen=True)
class DatasetSnapshot(Record):
    """A named dataset frozen by content. Its rows lie in the store under kind `dataset`, one JSONL file per pool."""

    schema: ClassVar[str] = "llmops.dataset/1"
    name: str
    artifact: str  # digest of the stored files
    n_rows: dict[str, int]  # by pool
    n_dropped: dict[str, int]  # by reason
    licence: str
    origin: str  # what the rows were built from, in words
