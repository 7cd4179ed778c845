"""Cases written down in a file: what is asked, what is expected of the answer, and what belongs together.

A line is a data row of any format, with its answer or without one, and may say more:

| field | meaning |
|---|---|
| `references` | a list of good answers, beside the row's own |
| `follow_ups` | user turns that are put after the answer, one by one; the last answer is scored |
| `tools` | functions that may be called, in OpenAI's form |
| `expected` | an object that metrics without references hold the answer against |
| `slices` | an object of texts: which named parts of the suite the case belongs to |
| `pair` | cases of one pair differ only in something that must not matter |
| `group` | the cluster key; the prompt without it |
"""

from __future__ import annotations

import difflib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

from llmops.data.containers import read_values
from llmops.data.formats import parse
from llmops.errors import DataError
from llmops.records import Case, Dropped, Row
from llmops.schema import JsonDict, canonical_json, digest_of

OWN_FIELDS = ("references", "follow_ups", "expected", "slices", "pair")
"""Fields that only cases have."""
_ALMOST = 0.85  # how alike a field's name is to one of these when it must be a slip
_ANSWER = "an answer"  # stands where a line has none, so that the turns before it are checked as a row's


def read_case_file(path: Path) -> list[Case]:
    """The cases of a file in its order; lines that differ only in their answers are one case.

    Raises:
        DataError: names the first line that is no case, or that asks and expects what an earlier one does.
    """
    cases: dict[str, Case] = {}
    for value in read_values(path, path.name):
        if isinstance(value, Dropped):
            raise DataError(f"{path.parent / value.source}: {value.reason}; correct the line")
        try:
            case = case_of(value.data, value.source)
        except ValueError as error:
            raise DataError(f"{path.parent / value.source}: {error}; correct the line") from None
        key = digest_of([replace(case, references=(), source="").digest, case.slices, case.pair])
        same = cases.get(key)
        references = dict.fromkeys((*(same.references if same else ()), *case.references))
        cases[key] = replace(same or case, references=tuple(references))
    _require_distinct(path, list(cases.values()))
    return list(cases.values())


def case_of(data: object, source: str) -> Case:
    """The case that a line's JSON value says; `source` is its `file:line`.

    Raises:
        ValueError: it is none, with the field and what is wrong with it.
    """
    if not isinstance(data, dict):
        raise ValueError(f"not an object: {type(data).__name__}")
    for name in data:
        if meant := _meant_by(str(name)):
            raise ValueError(f"{name} is not a field of cases; did you mean {meant}?")
    row, answered = _row({k: v for k, v in data.items() if k not in OWN_FIELDS}, source)
    answer = row.messages[-1]
    own = [answer.content] if answered and answer.content else []
    expected = _object(data, "expected")
    if answered and answer.tool_calls:
        calls = [{"name": c.name, "arguments": json.loads(c.arguments)} for c in answer.tool_calls]
        expected = {"tool_calls": calls} | expected
    follow_ups = _texts(data, "follow_ups")
    if follow_ups and row.tools:
        raise ValueError(
            "has follow_ups and tools: a turn after a call would need its result; give one of them"
        )
    return Case(
        row.messages[:-1],
        tuple(dict.fromkeys([*own, *_texts(data, "references")])),
        row.group,
        source,
        follow_ups,
        row.tools,
        expected,
        _slices(data),
        _text(data, "pair"),
    )


@cache
def _meant_by(name: str) -> str:
    """The case's field that a name is a slip for; empty when it is none."""
    close = difflib.get_close_matches(name, OWN_FIELDS, n=1, cutoff=_ALMOST)
    return close[0] if close and name not in OWN_FIELDS else ""


def _row(data: JsonDict, source: str) -> tuple[Row, bool]:
    """The line as a data row, and whether the answer in it is its own."""
    turns, answered = data.get("messages"), True
    if isinstance(turns, list) and turns and _role(turns[-1]) != "assistant":
        data, answered = {**data, "messages": [*turns, {"role": "assistant", "content": _ANSWER}]}, False
    elif "prompt" in data and not {"completion", "chosen", "rejected", "label", "messages"} & data.keys():
        data, answered = {**data, "completion": _ANSWER}, False
    found = parse(data, source)
    if isinstance(found, Dropped):
        raise ValueError(found.reason)
    if not isinstance(found, Row):
        raise ValueError("no conversation: give a prompt or messages, and references")
    return found, answered


def _role(turn: object) -> object:
    return turn.get("role") if isinstance(turn, dict) else None


def _texts(data: JsonDict, name: str) -> tuple[str, ...]:
    value = data.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_brief(value)}; give a list of texts")
    for i, text in enumerate(value):
        _require_text(f"{name}[{i}]", text)
    return tuple(value)


def _text(data: JsonDict, name: str) -> str | None:
    value = data.get(name)
    if value is not None:
        _require_text(name, value)
    return value


def _require_text(where: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where} is {_brief(value)}; give a text that is not empty")
    _require_json(where, value)


def _object(data: JsonDict, name: str) -> JsonDict:
    value = data.get(name, {})
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {_brief(value)}; give an object")
    _require_json(name, value)
    return value


def _slices(data: JsonDict) -> dict[str, str]:
    value = _object(data, "slices")
    for key, part in value.items():
        _require_text(f"slices.{key}", part)
    return value


def _require_json(where: str, value: object) -> None:
    """Refuse what digests cannot cover: numbers that are not finite, text that is not Unicode."""
    try:
        canonical_json(value)
    except UnicodeEncodeError:
        raise ValueError(f"{where} is not Unicode: a lone surrogate") from None
    except ValueError:
        raise ValueError(f"{where} holds a number that is not finite") from None


def _brief(value: object) -> str:
    return f"{value!r:.40}"


def _require_distinct(path: Path, cases: list[Case]) -> None:
    """Refuse two cases with one digest: their answers could not be told apart."""
    seen: dict[str, Case] = {}
    for case in cases:
        other = seen.setdefault(case.digest, case)
        if other is not case:
            raise DataError(
                f"{path.parent / case.source}: asks and expects what {other.source} does, under other slices or "
                "another pair; leave one out, or say both in one line"
            )
