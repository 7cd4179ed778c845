"""The parts of a request that are objects themselves: turns of a conversation, tools, and the form of an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field

from llmops.errors import BadRequest


class RequestRefused(BadRequest):
    """The request is wrong; carries the field's name, the HTTP status and a special type of error, if any."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str | None = None
    ) -> None:
        """Keep what the error body says."""
        super().__init__(message)
        self.param = param
        self.status = status
        self.kind = kind


class Strict(BaseModel):
    """What has no field but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TextPart(Strict):
    """One part of a list-type content; other types than text are refused."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What an earlier answer called; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Strict):
    """One call of an earlier answer."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class Message(Strict):
    """One turn of a conversation."""

    role: Annotated[str, Field(min_length=1)]
    content: str | list[TextPart] | None = None
    name: str | None = None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None

    def flat(self) -> dict[str, Any]:
        """Return the turn as templates read it: text parts joined by newlines and arguments as objects, as in vLLM."""
        text = (
            self.content if isinstance(self.content, str) else "\n".join(p.text for p in self.content or ())
        )
        turn: dict[str, Any] = {"role": self.role, "content": text}
        if self.tool_calls:
            turn["tool_calls"] = [_as_object(call) for call in self.tool_calls]
        if self.tool_call_id is not None:
            turn["tool_call_id"] = self.tool_call_id
        if self.name is not None and self.role == "tool":
            turn["name"] = self.name
        return turn


def _as_object(call: ToolCall) -> dict[str, Any]:
    try:
        arguments = orjson.loads(call.function.arguments or "{}")
    except orjson.JSONDecodeError:
        raise RequestRefused("messages: arguments of a tool call are not JSON", "messages") from None
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": "function", "function": function}


class Function(Strict):
    """What the model may call."""

    name: Annotated[str, Field(min_length=1)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """One tool; functions are the only kind."""

    type: Literal["function"]
    function: Function


class NamedSchema(Strict):
    """A JSON schema as OpenAI wraps it; it is followed whether `strict` or not."""

    name: str
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(Strict):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class StructuredOutputs(Strict):
    """What the answer must be, in vLLM's words; one of them."""

    json_: Annotated[dict[str, Any] | None, Field(alias="json")] = None
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
