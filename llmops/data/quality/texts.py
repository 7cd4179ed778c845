"""The texts of a row, read and rewritten by one walk: what is looked at is exactly what can be redacted.

A row is a conversation, a preference or a judged answer. The functions a row declares (`tools`) are no text of it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from llmops.records import Labelled, Message, Preference, Row
from llmops.schema import JsonDict

AnyRow = Row | Preference | Labelled
T = TypeVar("T", bound=AnyRow)

_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0eff\u1780-\u17ff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation; scripts that put no spaces (Han, kana, Thai, Lao, Khmer) give characters.

    >>> words_of("Don't touch my_file.txt!")
    ['don', 't', 'touch', 'my', 'file', 'txt']
    """
    return _WORD.findall(text.casefold())


def map_texts(row: T, change: Callable[[str], str]) -> T:
    """The row with every text changed: turns, reasoning, arguments of tool calls, and the answers of a pair."""
    changed: JsonDict = {"messages": tuple(_map_message(message, change) for message in row.messages)}
    if isinstance(row, Preference):
        changed |= {"chosen": change(row.chosen), "rejected": change(row.rejected)}
    if isinstance(row, Labelled):
        changed |= {"completion": change(row.completion)}
    return replace(row, **changed)


def texts_of(row: AnyRow) -> list[str]:
    """Every text of a row, in order."""
    found: list[str] = []

    def keep(text: str) -> str:
        found.append(text)
        return text

    map_texts(row, keep)
    return found


def prompt_of(row: AnyRow) -> tuple[Message, ...]:
    """What is asked, with the system turn if there is one."""
    return row.messages[:-1] if isinstance(row, Row) else row.messages


def answers_of(row: AnyRow) -> list[str]:
    """The texts that are learnt: the assistant's turns, or the judged answers."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    if isinstance(row, Labelled):
        return [row.completion]
    return [m.content for m in row.messages if m.role == "assistant"]


def asked_words(messages: Sequence[Message]) -> list[str]:
    """The words of a prompt, without its system turn."""
    return [word for m in messages if m.role != "system" for word in words_of(m.content)]


def row_words(row: AnyRow, system: bool = True) -> list[str]:
    """All words of a row in order, with or without those of its system turn."""
    messages = row.messages if system else tuple(m for m in row.messages if m.role != "system")
    return [word for text in texts_of(replace(row, messages=messages)) for word in words_of(text)]


def spelling(row: AnyRow) -> JsonDict:
    """What makes two rows equal: all they teach, but neither group nor source."""
    found: JsonDict = {"messages": [m.spelling for m in row.messages]}
    if isinstance(row, Preference):
        return found | {"chosen": row.chosen, "rejected": row.rejected}
    if isinstance(row, Labelled):
        return found | {"completion": row.completion, "good": row.good}
    return found | ({"tools": row.tools} if row.tools is not None else {})


def _map_message(message: Message, change: Callable[[str], str]) -> Message:
    reasoning = None if message.reasoning is None else change(message.reasoning)
    content = change(message.content)
    calls = tuple(
        replace(call, arguments=_map_arguments(call.arguments, change)) for call in message.tool_calls
    )
    return replace(message, content=content, reasoning=reasoning, tool_calls=calls)


def _map_arguments(arguments: str, change: Callable[[str], str]) -> str:
    """Arguments with the values of their JSON object changed; spelt as they were unless a value was."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return change(arguments)
    changed = _map_value(value, change)
    return arguments if changed == value else json.dumps(changed, ensure_ascii=False)


def _map_value(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _map_value(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_map_value(item, change) for item in value]
    if isinstance(value, str):
        return change(value)
    if isinstance(value, int) and not isinstance(value, bool):
        text = change(str(value))
        return value if text == str(value) else text
    return value
