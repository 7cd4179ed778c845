"""Formats that hold one conversation a row: OpenAI messages, ShareGPT, Alpaca, prompt and completion."""

from __future__ import annotations

from llmops.data.conversation import check_conversation, prompt_digest
from llmops.data.formats.turns import text_of, tools_of, turns_of
from llmops.records import Message, Row
from llmops.schema import JsonDict, canonical_json


def row_of_messages(data: JsonDict, source: str) -> Row:
    """A row of `{"messages": [{"role", "content"}], "tools": [...]}`."""
    return _row(turns_of(_present(data, "messages"), "messages"), data, source)


def row_of_sharegpt(data: JsonDict, source: str) -> Row:
    """A row of `{"conversations": [{"from", "value"}], "system": ..., "tools": ...}`."""
    turns = turns_of(_present(data, "conversations"), "conversations")
    return _row(_with_system(data, turns), data, source)


def row_of_alpaca(data: JsonDict, source: str) -> Row:
    """A row of `{"instruction", "input", "output", "system", "history"}`.

    Instruction and input are joined by a newline, as LLaMA-Factory does; `history` is a list of earlier
    [instruction, answer].
    """
    asked = [text_of(data[name], name) for name in ("instruction", "input") if data.get(name)]
    turns = [*_history(data.get("history")), Message("user", "\n".join(asked))]
    answer = Message("assistant", text_of(_present(data, "output"), "output"))
    return _row(_with_system(data, (*turns, answer)), data, source)


def row_of_completion(data: JsonDict, source: str) -> Row:
    """A row of `{"prompt", "completion"}`, each a string or a list of turns."""
    prompt = prompt_of(_present(data, "prompt"))
    return _row(prompt + answer_of(_present(data, "completion"), "completion"), data, source)


def prompt_of(value: object, where: str = "prompt") -> tuple[Message, ...]:
    """The turns of a prompt: a string is one user turn."""
    return (Message("user", value),) if isinstance(value, str) else turns_of(value, where)


def answer_of(value: object, where: str) -> tuple[Message, ...]:
    """The turns of an answer: a string is one assistant turn; only tool calls and their results may come before it.

    Raises:
        ValueError: others come in between.
    """
    if isinstance(value, str):
        return (Message("assistant", value),)
    turns = turns_of(value, where)
    if not turns or turns[0].role != "assistant" or any(m.role not in ("assistant", "tool") for m in turns):
        raise ValueError(f"wrong role order: {where} must be one assistant turn")
    if len(turns) > 1 and not any(m.tool_calls for m in turns):
        raise ValueError(f"wrong role order: {where} must be one assistant turn")
    return turns


def group_of(data: JsonDict, messages: tuple[Message, ...]) -> str:
    """The group a row names, else the digest of its prompt.

    Raises:
        ValueError: it names one that is no text.
    """
    group = data.get("group")
    if group is not None and not (isinstance(group, str) and group):
        raise ValueError(f"bad group: {group!r} is not a name")
    return group or prompt_digest(messages)


def _row(messages: tuple[Message, ...], data: JsonDict, source: str) -> Row:
    tools = tools_of(data.get("tools"))
    check_conversation(messages, [tool["function"]["name"] for tool in tools or ()])
    return Row(messages, group_of(data, messages), source, _spelt(tools) if tools else None)


def _spelt(tools: list[JsonDict]) -> str:
    try:
        return canonical_json(tools).decode()
    except UnicodeEncodeError:
        raise
    except ValueError as error:
        raise ValueError(f"bad tools: {error}") from None


def _with_system(data: JsonDict, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    system = data.get("system")
    if not system:
        return turns
    if turns and turns[0].role == "system":
        raise ValueError("ambiguous row: has a system field and a system turn")
    return (Message("system", text_of(system, "system")), *turns)


def _history(value: object) -> list[Message]:
    turns = []
    for i, pair in enumerate(value if isinstance(value, list) else [value] if value else []):
        if not isinstance(pair, list) or [type(text) for text in pair] != [str, str]:
            raise ValueError(f"wrong type: history[{i}] is not [instruction, answer]")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return turns


def _present(data: JsonDict, field: str) -> object:
    if field not in data:
        raise ValueError(f"missing field: {field}")
    return data[field]
