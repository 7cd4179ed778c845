"""Lists of dropped rows, one JSON line a row: where it stood and why; in quarantine with the row, to be mended."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from llmops.records import Dropped, Row
from llmops.schema import JsonDict, canonical_json

DROPPED_FILE, QUARANTINE_FILE = "dropped.jsonl", "quarantine.jsonl"


def dropped_lines(dropped: Iterable[Dropped]) -> bytes:
    """Dropped rows as JSON lines of source and reason."""
    return b"".join(canonical_json({"source": d.source, "reason": d.reason}) + b"\n" for d in dropped)


def quarantine_lines(dropped: Iterable[Dropped]) -> bytes:
    """Dropped rows as JSON lines of source, reason and row: its JSON value, or its text where it is none."""
    lines = []
    for one in dropped:
        line: JsonDict = {"source": one.source, "reason": one.reason}
        if one.row is not None:
            line["row"] = _value(one.row)
        # Escaped: rows that are no Unicode must be written down, too.
        lines.append(json.dumps(line, ensure_ascii=True).encode() + b"\n")
    return b"".join(lines)


def kept_text(dropped: Dropped, data: object) -> Dropped:
    """The dropped row with the JSON value it was read from."""
    try:
        return replace(dropped, row=json.dumps(data))
    except (TypeError, ValueError):  # a builder's value may be none of JSON's
        return replace(dropped, row=repr(data))


def row_text(row: Row) -> str:
    """A row as a line of its own."""
    data: JsonDict = {"messages": [m.to_turn() for m in row.messages]}
    if row.tools is not None:
        data["tools"] = json.loads(row.tools)
    return json.dumps(data, ensure_ascii=False)


def _value(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return found
