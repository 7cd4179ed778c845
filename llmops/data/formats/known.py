"""The formats by name, and which of them a row is in by the fields it has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmops.data.formats.conversations import (
    row_of_alpaca,
    row_of_completion,
    row_of_messages,
    row_of_sharegpt,
)
from llmops.data.formats.judged import labelled_of, preference_of
from llmops.data.formats.turns import UNSUPPORTED
from llmops.records import Dropped, Labelled, Preference, Row
from llmops.schema import JsonDict, canonical_json

Item = Row | Preference | Labelled
Found = Item | Dropped

UNSUPPORTED_ROWS = tuple(name for name in UNSUPPORTED if name not in ("weight", "train"))
"""Fields of a whole row that change what is asked in ways a text conversation cannot carry."""


@dataclass(frozen=True)
class Format:
    """A way to write rows down: its name, its fields in words, what a row becomes, and the function that reads one."""

    name: str
    fields: str
    gives: type[Item]
    read: Callable[[JsonDict, str], Item]


FORMATS = {
    found.name: found
    for found in (
        Format("messages", "messages", Row, row_of_messages),
        Format("sharegpt", "conversations", Row, row_of_sharegpt),
        Format("alpaca", "instruction, output", Row, row_of_alpaca),
        Format("prompt-completion", "prompt, completion", Row, row_of_completion),
        Format("preference", "chosen, rejected", Preference, preference_of),
        Format("kto", "prompt, completion, label", Labelled, labelled_of),
    )
}


def format_of(data: JsonDict) -> Format | None:
    """The format a row's fields spell; None when they spell none.

    Raises:
        ValueError: they spell two.
    """
    has = {name for name, value in data.items() if value is not None}
    if {"chosen", "rejected"} <= has:
        if has & {"completion", "label"}:
            raise ValueError("ambiguous row: has chosen and rejected, and completion or label")
        return FORMATS["preference"]
    asked = has & {"prompt", "completion"}
    fitting = [
        ("messages", "messages" in has),
        ("conversations", "conversations" in has),
        ("instruction and output", {"instruction", "output"} <= has),
        ("prompt or completion", bool(asked) and not _repeats(data, asked)),
    ]
    found = [words for words, fits in fitting if fits]
    if len(found) > 1:
        raise ValueError(f"ambiguous row: has both {found[0]} and {found[1]}")
    if found == ["prompt or completion"]:
        if len(asked) < 2:
            return None
        return FORMATS["kto" if "label" in has else "prompt-completion"]
    names = {"messages": "messages", "conversations": "sharegpt", "instruction and output": "alpaca"}
    return FORMATS[names[found[0]]] if found else None


def detect(values: Iterable[object]) -> Format | None:
    """The format of most of these rows; the one seen first where two are as many. None when no row has a known one."""
    counts: Counter[str] = Counter()
    for data in values:
        try:
            found = format_of(data) if isinstance(data, dict) else None
        except ValueError:
            continue
        if found:
            counts[found.name] += 1
    return FORMATS[counts.most_common(1)[0][0]] if counts else None


def parse(data: object, source: str, expected: Format | None = None) -> Found:
    """What a row's JSON value says, in the `expected` format of its file (None: in its own).

    A row that cannot be used, or that is in another format than its file, is dropped with the reason.
    """
    if not isinstance(data, dict):
        return Dropped(source, f"not an object: {type(data).__name__}")
    unsupported = [name for name in UNSUPPORTED_ROWS if data.get(name) not in (None, [], {}, "")]
    if unsupported:
        return Dropped(source, f"unsupported field: {unsupported[0]}")
    try:
        own = format_of(data)
        if expected and own and own is not expected:
            raise ValueError(f"another format: the row is {own.name}, its file is {expected.name}")
        known = expected or own
        if known is None:
            raise ValueError(f"unknown format: {_fields(data)}; known: {KNOWN}")
        item = known.read(data, source)
        canonical_json([m.to_turn() for m in item.messages] + [*_texts(item)])
    except UnicodeEncodeError:
        return Dropped(source, "not Unicode: a lone surrogate")
    except ValueError as error:
        return Dropped(source, str(error))
    return item


KNOWN = "; ".join(known.fields for known in FORMATS.values())


def _repeats(data: JsonDict, asked: set[str]) -> bool:
    """Whether the prompt only says again how the messages begin, as some published datasets have it."""
    messages = data.get("messages")
    if asked != {"prompt"} or not isinstance(messages, list):
        return False
    users = [m.get("content") for m in messages if isinstance(m, dict) and m.get("role") == "user"]
    return bool(users) and users[0] == data["prompt"]


def _fields(data: JsonDict) -> str:
    names = sorted(str(name) for name, value in data.items() if value is not None)
    return "has no field" if not names else "has " + ", ".join(name[:40] for name in names[:8])


def _texts(item: Item) -> list[str]:
    if isinstance(item, Row):
        return [item.tools or "", item.group]
    if isinstance(item, Labelled):
        return [item.completion, item.group]
    return [item.chosen, item.rejected, item.group]
