"""From rows to cases: one a prompt, and a sample of them that is spread over the groups. Reads nothing."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence

from llmops.errors import DataError
from llmops.records import Case, Row
from llmops.schema import digest_of


def cases_of(rows: Iterable[Row]) -> list[Case]:
    """One case for each prompt, in order of first appearance; all its answers are references.

    Raises:
        DataError: a row has tools or tool calls; what is asked and scored here is text.
    """
    answers: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.tools is not None or any(m.tool_calls or m.role == "tool" for m in row.messages):
            raise DataError(
                f"{row.source}: has tools, and cases are asked and scored as text alone; "
                "keep such rows in a dataset of their own, with nothing in its rate and gate pools"
            )
        answers[digest_of([m.spelling for m in row.messages[:-1]])].append(row)
    cases = []
    for same in answers.values():
        first = same[0]
        references = tuple(dict.fromkeys(row.messages[-1].content for row in same))
        cases.append(Case(first.messages[:-1], references, first.group, first.source))
    return cases


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
