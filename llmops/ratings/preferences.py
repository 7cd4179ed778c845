"""Preference snapshots: their one line a pair, stored, found by name, read back verified.

An artifact of kind `preferences` holds pairs.jsonl (what is learnt from) and dropped.jsonl (what is not, and why).
Which votes become pairs is decided by `llmops.feedback.export`; here they are only written down and read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from llmops.errors import BadRequest, InvalidEvidence
from llmops.ledger import Ledger
from llmops.ratings.origins import require_standing
from llmops.ratings.withdrawn import lost_ratings
from llmops.records import Message, Preference, PreferenceSnapshot
from llmops.schema import canonical_json, short
from llmops.store import Store

PAIRS_FILE = "pairs.jsonl"
DROPPED_FILE = "dropped.jsonl"


@dataclass(frozen=True)
class DroppedItem:
    """An item that became no pair: its digest, where its prompt stood, and why."""

    item: str
    source: str
    reason: str


def put_preferences(
    store: Store,
    pairs: Iterable[Preference],
    dropped: Iterable[DroppedItem],
    others: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """Freeze pairs and what was dropped, in their order, with other files; returns the digest of the stored files."""
    rows = ({"item": d.item, "source": d.source, "reason": d.reason} for d in dropped)
    files = {
        PAIRS_FILE: b"".join(preference_line(pair) + b"\n" for pair in pairs),
        DROPPED_FILE: b"".join(canonical_json(row) + b"\n" for row in rows),
        **others,
    }
    return store.put_files("preferences", files)


def find_preferences(store: Store, ledger: Ledger, name: str) -> PreferenceSnapshot:
    """The newest preference snapshot of a name, which is the name of the campaign it comes from.

    Raises:
        BadRequest: none was exported, or pairs of it rest on ratings that were taken back since.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    snapshot = newest_preferences(store, ledger, name)
    if lost_ratings(ledger):
        behind = [pair.ratings for pair in load_pairs(store, snapshot)]
        require_standing(ledger, f"preferences {name}", behind, f"llmops feedback export {name}")
    return snapshot


def newest_preferences(store: Store, ledger: Ledger, name: str) -> PreferenceSnapshot:
    """`find_preferences`, whatever became of the ratings.

    Raises:
        BadRequest: none was exported.
        InvalidEvidence: its record is gone from the store, or altered.
    """
    found = [e for e in ledger.events("preferences.snapshotted") if e.body["name"] == name]
    if not found:
        raise BadRequest(f"preferences {name}: no snapshot; run `llmops feedback export {name}`")
    return store.get_record(PreferenceSnapshot, str(found[-1].body["preferences"]))


def load_pairs(store: Store, snapshot: PreferenceSnapshot) -> list[Preference]:
    """The pairs of a snapshot in their order, after every byte was compared with its digest.

    Raises:
        InvalidEvidence: the snapshot's files are gone or altered.
    """
    folder = store.verify("preferences", snapshot.artifact)
    pairs = [preference_of_line(line) for line in (folder / PAIRS_FILE).read_bytes().splitlines()]
    if len(pairs) != snapshot.n_pairs:
        raise InvalidEvidence(
            f"preferences {snapshot.name}: {short(snapshot.artifact)} holds {len(pairs):,} pairs, its record says "
            f"{snapshot.n_pairs:,}; export them again"
        )
    return pairs


def preference_line(pair: Preference) -> bytes:
    """The one line of a pair in a snapshot, without its newline."""
    return canonical_json(
        {
            "messages": [m.to_turn() for m in pair.messages],
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            "group": pair.group,
            "source": pair.source,
            "item": pair.item,
            "ratings": list(pair.ratings),
        }
    )


def preference_of_line(line: bytes) -> Preference:
    """The pair of a snapshot's line, as `preference_line` wrote it."""
    data = json.loads(line)
    messages = tuple(Message.of_turn(m) for m in data.pop("messages"))
    return Preference(messages=messages, ratings=tuple(data.pop("ratings")), **data)
