"""From rows to cases: one a prompt, and a sample of them that is spread over the groups.

A suite's file says where its cases come from (`DatasetCases`, `FileCases`); `resolve_cases` reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llmops.data.case_files import read_case_file
from llmops.data.snapshot import find_snapshot, load_pool
from llmops.errors import DataError
from llmops.ledger import Ledger
from llmops.records import Case, Row
from llmops.schema import digest_of
from llmops.store import Store


class DatasetCases(BaseModel):
    """Cases from a pool of a dataset's newest snapshot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["dataset"]
    name: str
    """The dataset's name."""
    pool: Literal["gate", "rate"] = "gate"
    """The pool; what was trained on cannot be asked for."""
    n_max: int | None = Field(default=None, ge=2)
    """At most this many cases, spread over the groups; None asks them all."""
    seed: int = 0
    """Changes which cases are taken."""
    slice_by: tuple[Literal["group", "length"], ...] = ()
    """Slices that rows have without being marked: their group, and by length of the prompt the shortest, middle and
    longest third of the cases."""


class FileCases(BaseModel):
    """Cases written down in a JSONL file; `llmops.data.case_files` says how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["file"]
    path: str
    """Relative to the suite's file."""


def resolve_cases(wanted: DatasetCases | FileCases, folder: Path, store: Store, ledger: Ledger) -> list[Case]:
    """The cases a suite asks, in its order.

    Args:
        wanted: what the suite's file says.
        folder: what a file's path is relative to.
        store: where snapshots lie.
        ledger: which snapshot is the newest.

    Raises:
        BadRequest: the dataset was never built.
        DataError: the file is missing or has a bad line.
        InvalidEvidence: the dataset's files were altered.
    """
    if isinstance(wanted, FileCases):
        return read_case_file(folder / wanted.path)
    snapshot = find_snapshot(store, ledger, wanted.name)
    return sample_of(wanted, load_pool(store, snapshot, wanted.pool))


def sample_of(wanted: DatasetCases, rows: Iterable[Row]) -> list[Case]:
    """The cases a suite takes of its pool's rows."""
    cases = sample(cases_of(rows, with_tools=True), wanted.n_max, wanted.seed)
    for about in wanted.slice_by:
        named = [case.group for case in cases] if about == "group" else _thirds(cases)
        cases = [replace(c, slices={**c.slices, about: name}) for c, name in zip(cases, named, strict=True)]
    return cases


def _thirds(cases: Sequence[Case]) -> list[str]:
    """`short`, `middle` or `long` for each case: in which third of all its prompt's characters put it."""
    lengths = [sum(len(message.content) for message in case.messages) for case in cases]
    ranked = sorted(lengths)
    lower, upper = ranked[len(ranked) // 3], ranked[2 * len(ranked) // 3]
    return ["short" if n < lower else "middle" if n < upper else "long" for n in lengths]


def cases_of(rows: Iterable[Row], with_tools: bool = False) -> list[Case]:
    """One case for each prompt, in order of first appearance; all its answers are references.

    With tools a row that ends with calls gives no reference: the calls of the prompt's first such row are what is
    `expected` (`tool_calls`).

    Raises:
        DataError: a row has tools or tool calls, and `with_tools` is off: what is asked and shown is text.
    """
    answers: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if not with_tools and (
            row.tools is not None or any(m.tool_calls or m.role == "tool" for m in row.messages)
        ):
            raise DataError(
                f"{row.source}: has tools, and cases are asked and scored as text alone; "
                "keep such rows in a dataset of their own, with nothing in its rate and gate pools"
            )
        answers[digest_of([[m.spelling for m in row.messages[:-1]], row.tools])].append(row)
    return [_case(same) for same in answers.values()]


def _case(same: Sequence[Row]) -> Case:
    """The case of rows with one prompt."""
    first, last = same[0], [row.messages[-1] for row in same]
    references = tuple(dict.fromkeys(m.content for m in last if m.content))
    calls = next((m.tool_calls for m in last if m.tool_calls), ())
    expected = {"tool_calls": [{"name": c.name, "arguments": json.loads(c.arguments)} for c in calls]}
    return Case(
        first.messages[:-1],
        references,
        first.group,
        first.source,
        tools=first.tools,
        expected=expected if calls else {},
    )


def sample(cases: Sequence[Case], n_max: int | None, seed: int) -> list[Case]:
    """At most `n_max` cases, taken in turn from every group, in an order set by content and seed alone.

    Each group gives one case before any gives a second. A case added to the pool displaces at most those
    after it.
    """

    def rank(text: str) -> bytes:
        return hashlib.sha256(f"{seed}\0{text}".encode()).digest()

    groups: dict[str, list[Case]] = defaultdict(list)
    for case in sorted(cases, key=lambda c: rank(c.digest)):
        groups[case.group].append(case)
    turns = [
        (turn, rank(group), case) for group, members in groups.items() for turn, case in enumerate(members)
    ]
    ordered = [case for _, _, case in sorted(turns, key=lambda item: item[:2])]
    return ordered[:n_max]
