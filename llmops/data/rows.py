"""Rows: a conversation checked, its one canonical line, and reading of user JSONL files.

A line that cannot be used becomes a `Dropped` with file, line and reason; nothing is skipped in silence.
Reasons read `class: detail`, so that they can be counted by class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmops.errors import DataError
from llmops.records import Dropped, Message, Row
from llmops.schema import JsonDict, canonical_json, digest_of

ROLES = ("system", "user", "assistant")

# Fields that change what is asked of a model in ways a text conversation cannot carry; other unknown fields
# are notes.
UNSUPPORTED = ("tools", "functions", "tool_calls", "images", "audio", "videos", "chosen", "rejected")


def read_rows(path: Path, name: str | None = None) -> Iterator[Row | Dropped]:
    """Every line of a JSONL file as a row, or as dropped with the reason.

    `name` stands for the path in each row's `source` (default: the path as given).
    A line is `{"messages": [...]}` or `{"prompt": ..., "completion": ...}` (strings or message lists), and
    optionally `"group"`; without it the group is the prompt, so that one prompt never lands in two pools.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield parse_line(line, f"{name or path}:{number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a JSONL file") from None


def parse_line(line: bytes, source: str) -> Row | Dropped:
    """One line of a JSONL file."""
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        return Dropped(source, f"not UTF-8: byte {line[error.start]:#04x} at {error.start}")
    if not text.strip():
        return Dropped(source, "empty line")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        return Dropped(source, f"malformed JSON: {error.msg} at column {error.colno}")
    except RecursionError:
        return Dropped(source, "malformed JSON: nested too deeply")
    return parse_row(data, source)


def parse_row(data: object, source: str) -> Row | Dropped:
    """A row from its JSON value."""
    if not isinstance(data, dict):
        return Dropped(source, f"not an object: {type(data).__name__}")
    unsupported = [name for name in UNSUPPORTED if name in data]
    if unsupported:
        return Dropped(source, f"unsupported field: {unsupported[0]}")
    try:
        messages = _messages(data)
        check_conversation(messages)
        group = data.get("group")
        if group is not None and not (isinstance(group, str) and group):
            raise ValueError(f"bad group: {group!r} is not a name")
        row = Row(messages, group or prompt_digest(messages), source)
        canonical_line(row)
    except UnicodeEncodeError:
        return Dropped(source, "not Unicode: a lone surrogate")
    except ValueError as error:
        return Dropped(source, str(error))
    return row


def _messages(data: JsonDict) -> tuple[Message, ...]:
    if "messages" in data:
        if "prompt" in data or "completion" in data:
            raise ValueError("ambiguous row: has both messages and prompt or completion")
        return _turns(data["messages"], "messages")
    if "prompt" not in data or "completion" not in data:
        raise ValueError("no conversation: has neither messages nor prompt and completion")
    prompt, completion = data["prompt"], data["completion"]
    asked = (Message("user", prompt),) if isinstance(prompt, str) else _turns(prompt, "prompt")
    answer = (
        (Message("assistant", completion),)
        if isinstance(completion, str)
        else _turns(completion, "completion")
    )
    if [m.role for m in answer] != ["assistant"]:
        raise ValueError("wrong role order: completion must be one assistant turn")
    return asked + answer


def _turns(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise ValueError(f"wrong type: {where} is {type(value).__name__}, not a list")
    turns = []
    for i, turn in enumerate(value):
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise ValueError(f"wrong type: {where}[{i}] has no role")
        if not isinstance(turn.get("content"), str):
            raise ValueError(
                f"wrong type: {where}[{i}].content is {type(turn.get('content')).__name__}, not text"
            )
        unsupported = [name for name in UNSUPPORTED if turn.get(name)]
        if unsupported:
            raise ValueError(f"unsupported field: {where}[{i}].{unsupported[0]}")
        turns.append(Message(turn["role"], turn["content"]))
    return tuple(turns)


def check_conversation(messages: Sequence[Message]) -> None:
    """Refuse what is not [system] user assistant (user assistant)*, or has an empty turn.

    Raises:
        ValueError: `class: detail`.
    """
    turns = list(messages[1:]) if messages and messages[0].role == "system" else list(messages)
    roles = [m.role for m in messages]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ValueError(f"unknown role: {unknown[0]!r}")
    if not turns or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(turns)):
        raise ValueError(f"wrong role order: {' '.join(roles) or 'no turns'}")
    if turns[-1].role != "assistant":
        raise ValueError(f"wrong role order: ends with {turns[-1].role}, not with an answer")
    for i, message in enumerate(messages):
        if not message.content.strip():
            what = "empty answer" if message.role == "assistant" else "empty turn"
            raise ValueError(f"{what}: messages[{i}]")


def prompt_digest(messages: Sequence[Message]) -> str:
    """Digest of all turns but the last."""
    return asked_digest(messages[:-1])


def asked_digest(messages: Sequence[Message]) -> str:
    """Digest of what is asked, whatever is answered."""
    return digest_of([m.spelling for m in messages])


def canonical_line(row: Row) -> bytes:
    """The one line of a row in a snapshot, without its newline."""
    data: JsonDict = {"messages": [m.to_turn() for m in row.messages]}
    if row.tools is not None:
        data["tools"] = json.loads(row.tools)
    return canonical_json({**data, "group": row.group, "source": row.source})


def row_of_line(line: bytes) -> Row:
    """The row of a snapshot's line, as `canonical_line` wrote it."""
    data = json.loads(line)
    tools = canonical_json(data["tools"]).decode() if "tools" in data else None
    return Row(tuple(Message.of_turn(m) for m in data["messages"]), data["group"], data["source"], tools)
