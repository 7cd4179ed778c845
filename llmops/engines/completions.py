"""Completions as they are kept: a line of JSON each, stored with the cases they answer, read back verified.

An artifact of kind `completions` holds completions.jsonl and cases.jsonl; each case has as many completions (its
samples), one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import orjson

from llmops.errors import InvalidEvidence
from llmops.records import Case, Completion, Message, Report, ToolCall
from llmops.schema import canonical_json
from llmops.store import Store

COMPLETIONS_FILE = "completions.jsonl"
CASES_FILE = "cases.jsonl"


def put_completions(store: Store, cases: Sequence[Case], completions: Sequence[Completion]) -> str:
    """Store completions with the cases they answer; returns the artifact's digest."""
    files = {
        COMPLETIONS_FILE: b"".join(map(completion_line, completions)),
        CASES_FILE: b"".join(map(_case_line, cases)),
    }
    return store.put_files("completions", files)


def load_answers(store: Store, report: Report) -> list[tuple[Case, Completion]]:
    """A report's cases with the first sample that answers each, after every byte was compared with its digest.

    Raises:
        InvalidEvidence: as for `load_samples`.
    """
    return [(case, own[0]) for case, own in load_samples(store, report)]


def load_samples(store: Store, report: Report) -> list[tuple[Case, tuple[Completion, ...]]]:
    """A report's cases with all samples that answer each, after every byte was compared with its digest.

    Raises:
        InvalidEvidence: the files are gone, altered, or do not answer the report's cases one by one.
    """
    folder = store.verify("completions", report.completions)
    where = f"report of {report.system}"
    completions = read_completions((folder / COMPLETIONS_FILE).read_bytes(), where)
    try:
        cases = [_case(line) for line in (folder / CASES_FILE).read_bytes().splitlines()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidEvidence(f"{where}: {CASES_FILE} is damaged ({error}); evaluate again") from None
    n = report.n_samples
    expected = [(case.digest, i) for case in cases for i in range(n)]
    if expected != [(c.case, c.sample) for c in completions] or len(cases) != report.n_cases:
        raise InvalidEvidence(f"{where}: its completions do not answer its cases one by one; evaluate again")
    return [(case, tuple(completions[i * n : (i + 1) * n])) for i, case in enumerate(cases)]


def _case(line: bytes) -> Case:
    data = json.loads(line)
    messages = tuple(Message.of_turn(m) for m in data["messages"])
    rest = {name: data[name] for name in ("group", "source", "tools", "expected", "slices", "pair")}
    return Case(messages, tuple(data["references"]), follow_ups=tuple(data["follow_ups"]), **rest)


def _case_line(case: Case) -> bytes:
    own = {field.name: getattr(case, field.name) for field in fields(case)}
    return canonical_json({**own, "messages": [m.to_turn() for m in case.messages]}) + b"\n"


def completion_line(completion: Completion) -> bytes:
    """A completion as one line of JSON with sorted names."""
    calls = [vars(call) for call in completion.tool_calls]
    return orjson.dumps({**vars(completion), "tool_calls": calls}, option=orjson.OPT_SORT_KEYS) + b"\n"


def read_completions(content: bytes, where: str) -> list[Completion]:
    """The completions of a file's content.

    Raises:
        InvalidEvidence: names the first line that is no completion.
    """
    found = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            data: dict[str, Any] = orjson.loads(line)
            calls = tuple(ToolCall(**call) for call in data.pop("tool_calls", ()))
            found.append(
                Completion(**data | {"earlier": tuple(data.get("earlier", ())), "tool_calls": calls})
            )
        except (ValueError, TypeError) as error:
            raise InvalidEvidence(
                f"{where}: {COMPLETIONS_FILE}:{number} is damaged ({error}); evaluate again"
            ) from None
    return found
