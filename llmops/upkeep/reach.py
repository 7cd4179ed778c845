"""What the ledger reaches in the store: all that its events name, and all that the records named there name in turn.

Reads the store; removes and writes nothing.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from llmops.errors import InvalidEvidence
from llmops.ledger import Event
from llmops.manifest import RECORD, RECORD_KIND
from llmops.schema import JsonDict, short
from llmops.store import Store

_DIGEST = re.compile(r"[0-9a-f]{64}")

# What must be in the store, by the field that names it. Not every digest names an artifact (a base's, a gate's).
_NAMED_BY_EVENTS: Mapping[str, Mapping[str, str]] = {
    "dataset.snapshotted": {"snapshot": "dataset_record", "artifact": "dataset"},
    "adapter.registered": {
        "adapter": "adapter",
        "record": "adapter_record",
        "lineage_files": "lineage_files",
    },
    "adapter.exported": {"merged": "merged"},
    "report.stored": {"report": "report_record"},
    "lm_eval.stored": {"artifact": "lm_eval"},
    "judged": {"judgements": "judgements_record"},
    "judge.calibrated": {"calibration": "judge_calibration_record"},
    "campaign.opened": {"campaign": "campaign_record", "items": "items"},
    "preferences.snapshotted": {"preferences": "preferences_record", "artifact": "preferences"},
    "decision.made": {"decision": "decision_record"},
    "approval.given": {"approval": "approval_record"},
    "release.requested": {"release": "release_record"},
    "rollout.requested": {"rollout": "rollout_record"},
    "rollout.stepped": {"evidence": "rollout_evidence_record"},
    "rollout.ready": {"evidence": "rollout_evidence_record"},
    "rollout.aborted": {"evidence": "rollout_evidence_record"},
    "engine.requested": {"settings": "engine_settings_record"},
    "engine.started": {"started": "started_engine_record"},
    "engine.switched": {"settings": "engine_settings_record", "instead_of": "engine_settings_record"},
}
_NAMED_BY_RECORDS: Mapping[str, Mapping[str, str]] = {
    "dataset_record": {"artifact": "dataset"},
    "adapter_record": {
        "adapter": "adapter",
        "probes": "probes_record",
        "lineage": "lineage_record",
        "prompt_contract": "prompt_contract_record",
    },
    "reward_adapter": {  # an adapter_record of kind reward
        "adapter": "adapter",
        "probes": "reward_probes_record",
        "lineage": "lineage_record",
        "prompt_contract": "prompt_contract_record",
    },
    "lineage_record": {"dataset": "dataset_record", "preferences": "preferences_record"},
    "report_record": {"completions": "completions"},
    "judgements_record": {"judgements": "judgements"},
    "judge_calibration_record": {"judgements": "judgements_record", "votes": "votes"},
    "campaign_record": {"items": "items", "rubric": "rubric"},
    "preferences_record": {"artifact": "preferences", "campaign": "campaign_record"},
    "decision_record": {
        "ratings.votes": "votes",
        "judge.judgements": "judgements_record",
        "judge.ratings.votes": "votes",
    },
    "release_record": {"decision": "decision_record"},
}


class Artifact(NamedTuple):
    """One artifact of the store."""

    kind: str
    digest: str

    def __str__(self) -> str:
        """As messages name it."""
        return f"{self.kind} {short(self.digest)}"


def stored(store: Store) -> set[Artifact]:
    """Everything in the store."""
    return {Artifact(kind, digest) for kind in store.kinds() for digest in store.digests(kind)}


def digests_in(value: object) -> Iterator[str]:
    """Every 64-digit hex string in a JSON value, at any depth.

    >>> list(digests_in({"a": ["0" * 64, 1], "b": "x"})) == ["0" * 64]
    True
    """
    if isinstance(value, str):
        if _DIGEST.fullmatch(value):
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from digests_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from digests_in(part)


def reachable(store: Store, found: Iterable[Artifact], seeds: Iterable[str]) -> set[Artifact]:
    """The artifacts among `found` that the digests `seeds` name, or that a record which is reached names.

    Raises:
        InvalidEvidence: a record that is reached cannot be read: what it names cannot be known.
    """
    by_digest: dict[str, list[Artifact]] = defaultdict(list)
    for artifact in found:
        by_digest[artifact.digest].append(artifact)
    reached: set[Artifact] = set()
    waiting = list(seeds)
    while waiting:
        for artifact in by_digest.pop(waiting.pop(), ()):
            reached.add(artifact)
            if artifact.kind.endswith(RECORD_KIND):
                waiting += digests_in(read_record(store, artifact))
    return reached


def missing(store: Store, events: Iterable[Event], reached: Iterable[Artifact]) -> list[str]:
    """What events and reached records name and the store does not have, each as `artifact, named by ...`."""
    there, lost = set(reached), dict[Artifact, str]()
    for event in events:
        for artifact in _named(_NAMED_BY_EVENTS.get(event.kind, {}), event.body):
            lost.setdefault(artifact, f"event {event.seq} ({event.kind})")
    for record in sorted(there):
        if record.kind in _NAMED_BY_RECORDS:
            body = read_record(store, record)
            kind = (
                "reward_adapter"
                if record.kind == "adapter_record" and body.get("kind") == "reward"
                else record.kind
            )
            for artifact in _named(_NAMED_BY_RECORDS[kind], body):
                lost.setdefault(artifact, str(record))
    return [f"{artifact}, named by {by}" for artifact, by in lost.items() if artifact not in there]


def read_record(store: Store, record: Artifact) -> JsonDict:
    """The JSON of a stored record, whatever its schema.

    Raises:
        InvalidEvidence: it cannot be read.
    """
    try:
        body: JsonDict = json.loads((store.path(*record) / RECORD).read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidEvidence(f"store: {record} cannot be read ({error}); restore it") from error
    return body


def _named(fields: Mapping[str, str], body: JsonDict) -> Iterator[Artifact]:
    for field, kind in fields.items():
        value: object = body
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            yield Artifact(kind, value)
