"""What readers of the lineage graph share: where they look, and what they tell of one thing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from llmops.errors import InvalidEvidence
from llmops.ledger import Event
from llmops.manifest import RECORD, sha256_file
from llmops.records import Rating
from llmops.registry.nodes import Kind
from llmops.schema import R, short
from llmops.store import Store, kind_of

Events = Sequence[Event]
"""All about one thing, oldest first; none when another record alone names it."""
Link = tuple[str, Kind, str]
"""Word of the edge, kind and id of what it leads to."""


@dataclass(frozen=True)
class Known:
    """All about one thing, in the words of `Node`; `parts` are the digests of its record and files."""

    name: str
    label: str = ""
    at: str | None = None
    links: tuple[Link, ...] = ()
    parts: tuple[str, ...] = ()
    problem: str | None = None


@dataclass
class Sources:
    """Where readers look: the store, the rating rows by number, and what earlier readers found out for later ones."""

    store: Store
    rows: Mapping[int, tuple[Rating, str]]  # the rating, and the digest its row claims
    registered: frozenset[str]  # adapters
    campaign_names: Mapping[str, str]
    superseded: Mapping[str, int]  # rating -> number of the one that counts instead
    base_refs: dict[str, str] = field(default_factory=dict)
    asked_at: dict[tuple[str, str], str] = field(
        default_factory=dict
    )  # (campaign, item) -> source of its prompt

    def read(self, cls: type[R], digest: str) -> tuple[R | None, str | None]:
        """The record, or why there is none."""
        try:
            return self.store.get_record(cls, digest), None
        except InvalidEvidence as error:
            kind = kind_of(cls)
            with suppress(InvalidEvidence, OSError):
                if sha256_file(self.store.path(kind, digest) / RECORD) == digest:
                    return None, f"UNREADABLE: {error}"  # whole, but not of a version this one knows
            return None, self.broken(kind, digest, error)

    def broken(self, kind: str, digest: str, error: InvalidEvidence) -> str:
        """What became of an artifact that was found wanting."""
        return f"{'CHANGED' if self.store.has(kind, digest) else 'MISSING'}: {error}"

    def files(self, kind: str, digest: str) -> str | None:
        """Why an artifact's files cannot be had; None when they are there."""
        return (
            None if self.store.has(kind, digest) else f"MISSING: {kind} {short(digest)} is not in the store"
        )


def model_link(word: str, digest: str, sources: Sources, base: str | None = None) -> Link:
    """An edge to a model; without its base's digest a model that was never registered is taken for a base."""
    is_base = digest == base or (base is None and digest not in sources.registered)
    return word, "base" if is_base else "adapter", digest


def said(events: Events, key: str) -> str:
    """What the first of the events, which made the thing, says under a key."""
    return str(events[0].body.get(key, "?")) if events else "?"


def at(events: Events) -> str | None:
    """When the first of them was written; None when there is none."""
    return events[0].at if events else None
