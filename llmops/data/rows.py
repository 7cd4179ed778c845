"""Rows: reading of user JSONL files, and a row's one canonical line.

A line that cannot be used becomes a `Dropped` with file, line and reason; nothing is skipped in silence.
Reasons read `class: detail`, so that they can be counted by class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llmops.data.conversation import asked_digest, check_conversation, prompt_digest
from llmops.data.formats import Found, Raw, parse, parse_all
from llmops.errors import DataError
from llmops.records import Dropped, Message, Preference, Row
from llmops.schema import JsonDict, canonical_json

__all__ = [
    "asked_digest",
    "canonical_line",
    "check_conversation",
    "parse_line",
    "parse_row",
    "prompt_digest",
    "read_lines",
    "read_rows",
    "row_of_line",
]


def read_rows(path: Path, name: str | None = None) -> Iterator[Row | Dropped]:
    """Every line of a JSONL file as a row, or as dropped with the reason.

    `name` stands for the path in each row's `source` (default: the path as given). The format is told from the first
    lines (`llmops.data.formats`). `"group"` is what pools are split by; without it the group is the prompt, so that
    one prompt never lands in two pools.

    Raises:
        DataError: the file is missing or cannot be read.
    """
    for found in parse_all(read_lines(path, name))[1]:
        yield _conversation(found)


def read_lines(path: Path, name: str | None = None) -> Iterator[Raw | Dropped]:
    """The JSON value of every line of a file; arguments and errors as for `read_rows`."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield parse_line(line, f"{name or path}:{number}")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}); give a JSONL file") from None


def parse_line(line: bytes, source: str) -> Raw | Dropped:
    """The JSON value of one line."""
    try:
        text = line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        readable = line.decode("utf-8", "backslashreplace")
        return Dropped(source, f"not UTF-8: byte {line[error.start]:#04x} at {error.start}", readable)
    if not text.strip():
        return Dropped(source, "empty line")
    try:
        return Raw(json.loads(text), source)
    except json.JSONDecodeError as error:
        return Dropped(source, f"malformed JSON: {error.msg} at column {error.colno}", text)
    except ValueError:  # Python reads no longer ones
        return Dropped(source, "malformed JSON: a number of more than 4,300 digits", text)
    except RecursionError:
        return Dropped(source, "malformed JSON: nested too deeply", text)


def parse_row(data: object, source: str) -> Row | Dropped:
    """A conversation from its JSON value, in whichever format it is."""
    return _conversation(parse(data, source))


def _conversation(found: Found) -> Row | Dropped:
    if isinstance(found, Row | Dropped):
        return found
    what = "a preference" if isinstance(found, Preference) else "a judged answer"
    return Dropped(found.source, f"no conversation: the row is {what}")


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
