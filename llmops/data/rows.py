"""Rows: reading conversations of a user's file, and a row's one canonical line.

A line that cannot be used becomes a `Dropped` with file, line and reason; nothing is skipped in silence.
Reasons read `class: detail`, so that they can be counted by class.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from llmops.data.containers import read_values
from llmops.data.conversation import asked_digest, check_conversation, prompt_digest
from llmops.data.formats import Found, parse, parse_all
from llmops.records import Dropped, Labelled, Message, Preference, Row
from llmops.schema import JsonDict, canonical_json

__all__ = [
    "asked_digest",
    "canonical_line",
    "check_conversation",
    "labelled_line",
    "labelled_of_line",
    "parse_row",
    "prompt_digest",
    "read_any",
    "read_rows",
    "row_of_line",
]


def read_rows(path: Path, name: str | None = None) -> Iterator[Row | Dropped]:
    """Every row of a file (JSONL, JSON, CSV, Parquet) as a conversation, or as dropped with the reason.

    `name` stands for the path in each row's `source` (default: the path as given). The format is told from the first
    rows (`llmops.data.formats`). `"group"` is what pools are split by; without it the group is the prompt, so that
    one prompt never lands in two pools.

    Raises:
        DataError: the file is missing, cannot be read, or is not what its name says.
    """
    for found in read_any(path, name):
        yield _conversation(found)


def read_any(path: Path, name: str | None = None) -> Iterator[Found]:
    """Every row of a file in the form it has: conversation, preference, judged answer; else as for `read_rows`."""
    yield from parse_all(read_values(path, name))[1]


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


def labelled_line(row: Labelled) -> bytes:
    """The one line of a judged answer: a conversation's (see `canonical_line`), and its label."""
    turns = [m.to_turn() for m in (*row.messages, Message("assistant", row.completion))]
    return canonical_json({"messages": turns, "label": row.good, "group": row.group, "source": row.source})


def labelled_of_line(line: bytes) -> Labelled:
    """The judged answer that `labelled_line` wrote."""
    data = json.loads(line)
    messages = tuple(Message.of_turn(m) for m in data["messages"])
    return Labelled(messages[:-1], messages[-1].content, data["label"], data["group"], data["source"])
