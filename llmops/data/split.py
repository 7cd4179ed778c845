"""Which rows are kept and which pool each goes to. A group's pool depends on its name and the salt alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmops.data.config import POOLS, Pools
from llmops.data.quarantine import row_text
from llmops.data.rows import canonical_line, prompt_digest
from llmops.records import Dropped, Message, Row
from llmops.schema import digest_of


@dataclass(frozen=True)
class Sifted:
    """Rows kept and rows dropped; together they are all that was read."""

    kept: tuple[Row, ...]
    dropped: tuple[Dropped, ...]


def pool_of(group: str, pools: Pools, salt: str) -> str:
    """The pool of a group: its salted sha256, as a fraction of 2**64, against the pools' cumulative shares.

    Adding or removing groups moves no other group.
    """
    digest = hashlib.sha256(f"{salt}\0{group}".encode()).digest()
    position, upper = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name in POOLS:
        upper += getattr(pools, name)
        if position < upper:
            return name
    # Shares that add up to a little under 1 in floating point leave the last group here.
    return next(name for name in reversed(POOLS) if getattr(pools, name) > 0)


def sift(rows: Iterable[Row | Dropped], max_characters: int) -> Sifted:
    """Drop rows that are too long, that repeat another, or whose prompt stands in another group too.

    The order in which rows are read changes nothing: they are sorted by group and source first, and the first
    stays. One prompt with several answers stays when all are in one group.
    """
    kept: list[Row] = []
    dropped: list[Dropped] = []
    usable: list[Row] = []
    for row in rows:
        if isinstance(row, Dropped):
            dropped.append(row)
            continue
        n_characters = sum(_n_characters(m) for m in row.messages)
        if n_characters > max_characters:
            reason = f"too long: {n_characters:,} characters, limit {max_characters:,}"
            dropped.append(Dropped(row.source, reason, row_text(row)))
        else:
            usable.append(row)
    seen: dict[str, Row] = {}
    home: dict[str, Row] = {}
    for row in in_order(usable):
        spelt = [m.spelling for m in row.messages]
        conversation = digest_of([spelt, row.tools] if row.tools else spelt)
        prompt = prompt_digest(row.messages)
        if conversation in seen:
            reason = f"duplicate: same as {seen[conversation].source}"
            dropped.append(Dropped(row.source, reason, row_text(row)))
        elif home.setdefault(prompt, row).group != row.group:
            reason = f"prompt of another group: same as {home[prompt].source}"
            dropped.append(Dropped(row.source, reason, row_text(row)))
        else:
            seen[conversation] = row
            kept.append(row)
    return Sifted(tuple(kept), tuple(sorted(dropped, key=lambda d: (*_place(d.source), d.reason))))


def account(pools: Mapping[str, Iterable[Row]], dropped: Iterable[Dropped]) -> Sifted:
    """The rows of all pools, and the dropped ones by file and line."""
    kept = tuple(row for rows in pools.values() for row in rows)
    return Sifted(kept, tuple(sorted(dropped, key=lambda d: (*_place(d.source), d.reason))))


def in_order(rows: Iterable[Row]) -> list[Row]:
    """Rows by group, file and line, whatever order they were read in."""
    return sorted(rows, key=_order)


def split(rows: Sequence[Row], pools: Pools, salt: str) -> dict[str, list[Row]]:
    """The rows of every pool, in their given order."""
    split_rows: dict[str, list[Row]] = {name: [] for name in POOLS}
    for row in rows:
        split_rows[pool_of(row.group, pools, salt)].append(row)
    return split_rows


def _n_characters(message: Message) -> int:
    said = len(message.content) + len(message.reasoning or "")
    return said + sum(len(call.name) + len(call.arguments) for call in message.tool_calls)


def _order(row: Row) -> tuple[str, str, int, bytes]:
    return (row.group, *_place(row.source), canonical_line(row))


def _place(source: str) -> tuple[str, int]:
    path, _, line = source.rpartition(":")
    return (path, int(line)) if line.isdecimal() else (source, 0)
