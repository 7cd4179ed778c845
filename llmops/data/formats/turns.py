"""Turns of a conversation as JSON spells them, in OpenAI's form (role, content) or ShareGPT's (from, value)."""

from __future__ import annotations

import json
from typing import Any

from llmops.records import Message, ToolCall
from llmops.schema import JsonDict

# Fields that change what is asked or learnt in ways a conversation here cannot carry; other unknown ones are notes.
UNSUPPORTED = ("functions", "function_call", "images", "audio", "videos", "weight", "train")
NEUTRAL: dict[str, tuple[object, ...]] = {"weight": (1,), "train": (True,)}
"""Values at which such a field changes nothing."""
REASONING = ("reasoning_content", "reasoning", "thinking")
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "developer": "system",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
}
"""Names that other formats have for our four roles."""
CALLING = ("function_call", "tool_call")
"""ShareGPT's roles of an assistant's turn that is a call, spelt as JSON."""


def turns_of(value: object, where: str) -> tuple[Message, ...]:
    """The turns in a list of JSON objects, or in the JSON text of one; `where` names the field.

    Raises:
        ValueError: `class: detail`; roles in a wrong order are not looked at here.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = _decoded(value, where)
    if not isinstance(value, list):
        raise ValueError(f"wrong type: {where} is {type(value).__name__}, not a list")
    return tuple(_turn(turn, f"{where}[{i}]") for i, turn in enumerate(value))


def is_turns(value: object) -> bool:
    """Whether a value looks like a list of turns."""
    return isinstance(value, list) and all(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value
    )


def text_of(value: object, where: str) -> str:
    """A turn's text: a string, or OpenAI's list of text parts.

    Raises:
        ValueError: it is neither, or a part is not text.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"wrong type: {where} is {type(value).__name__}, not text")
    parts = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ValueError(f"unsupported content: {where}[{i}] is {kind}, not text")
        parts.append(part["text"])
    return "".join(parts)


def _turn(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise ValueError(f"wrong type: {where} has no role")
    if "role" in turn and "from" in turn:
        raise ValueError(f"ambiguous turn: {where} has both role and from")
    said = turn.get("role", turn.get("from"))
    if not isinstance(said, str):
        raise ValueError(f"wrong type: {where} has no role")
    for name in UNSUPPORTED:
        if turn.get(name) is not None and turn[name] not in NEUTRAL.get(name, ([], {}, "")):
            raise ValueError(f"unsupported field: {where}.{name}")
    field = "value" if "from" in turn else "content"
    if said in CALLING:
        return Message(
            "assistant", "", _reasoning(turn, where), tool_calls_of(turn.get(field), f"{where}.{field}")
        )
    role = ROLES.get(said, said)
    if role == "tool":
        content = text_of(turn.get(field), f"{where}.{field}")
        return Message(
            role, content, tool_call_id=_name(turn, "tool_call_id", where), name=_name(turn, "name", where)
        )
    calls = tool_calls_of(turn["tool_calls"], f"{where}.tool_calls") if turn.get("tool_calls") else ()
    content = "" if calls and turn.get(field) is None else text_of(turn.get(field), f"{where}.{field}")
    return Message(role, content, _reasoning(turn, where) if role == "assistant" else None, calls)


def _reasoning(turn: JsonDict, where: str) -> str | None:
    found = {}
    for name in REASONING:
        if turn.get(name):
            if not isinstance(turn[name], str):
                raise ValueError(f"wrong type: {where}.{name} is {type(turn[name]).__name__}, not text")
            found[name] = turn[name]
    if len(set(found.values())) > 1:
        raise ValueError(f"ambiguous turn: {where} has both {' and '.join(found)}")
    return next(iter(found.values()), None)


def _name(turn: JsonDict, field: str, where: str) -> str | None:
    value = turn.get(field)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"wrong type: {where}.{field} is {type(value).__name__}, not text")
    return value or None


def tool_calls_of(value: object, where: str) -> tuple[ToolCall, ...]:
    """Calls in OpenAI's form (`{"id", "function": {"name", "arguments"}}`) or bare.

    Arguments are an object, or its text.

    Raises:
        ValueError: one has no name, or arguments that are no JSON object.
    """
    if isinstance(value, str):
        value = _decoded(value, where)
    calls = value if isinstance(value, list) else [value]
    return tuple(_call(call, f"{where}[{i}]") for i, call in enumerate(calls))


def _call(call: object, where: str) -> ToolCall:
    function: Any = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ValueError(f"bad tool call: {where} has no function name")
    assert isinstance(call, dict)
    arguments = function.get("arguments")
    if arguments is None:
        arguments = {}
    text = arguments if isinstance(arguments, str) else _spelt(arguments, f"{where}.arguments")
    try:
        known = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"bad tool call: {where}.arguments is not JSON: {text[:40]!r}") from None
    if not isinstance(known, dict):
        raise ValueError(f"bad tool call: {where}.arguments is {type(known).__name__}, not an object")
    return ToolCall(function["name"], text, _name(call, "id", where))


def _spelt(value: object, where: str) -> str:
    """The value as JSON, in the order it has: the model learns to write it so."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bad tool call: {where} cannot be written as JSON ({error})") from None


def tools_of(value: object) -> list[JsonDict] | None:
    """The functions a row offers, as a list in OpenAI's form; None when there are none.

    `value` is that list, a list of bare functions, or the JSON text of either.

    Raises:
        ValueError: it is not, or two functions share a name.
    """
    if isinstance(value, str):
        value = _decoded(value, "tools") if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list):
        raise ValueError(f"wrong type: tools is {type(value).__name__}, not a list")
    tools = []
    for i, tool in enumerate(value):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if (
            not isinstance(function, dict)
            or not isinstance(function.get("name"), str)
            or not function["name"]
        ):
            raise ValueError(f"bad tools: tools[{i}] has no function name")
        tools.append(tool if "function" in tool else {"type": "function", "function": tool})
    names = [tool["function"]["name"] for tool in tools]
    if len(set(names)) < len(names):
        raise ValueError("bad tools: two functions have one name")
    return tools


def _decoded(text: str, where: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError(f"wrong type: {where} is text that is not JSON: {text[:40]!r}") from None
    return found
