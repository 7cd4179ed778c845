"""Where the rollouts of public names stand, folded from the ledger's events and never stored.

The command line appends `rollout.requested` and `rollout.abort_requested`; the gateway answers with `rollout.started`,
`refused`, `stepped`, `ready` or `aborted`. A name that moves ends what was compared with its old champion.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from llmops.errors import InvalidEvidence
from llmops.ledger import Event, EventKind
from llmops.records import Rollout, RolloutKind
from llmops.registry.adapters import Registry
from llmops.schema import short
from llmops.store import Store

ROLLOUT_KINDS: tuple[EventKind, ...] = (
    "rollout.requested", "rollout.started", "rollout.refused", "rollout.stepped", "rollout.ready",
    "rollout.abort_requested", "rollout.aborted", "release.activated",
)  # fmt: skip
"""What rollouts are folded from; a name that moves ends what was measured against its old champion."""
ROUTING_KINDS: tuple[EventKind, ...] = (
    "release.activated",
    "rollout.started",
    "rollout.stepped",
    "rollout.aborted",
    "engine.switched",
)
"""Events after which requests are routed otherwise: each is a version of the route table, and a switch of the engine is
one with the releases that come with it."""

Phase = Literal["waiting", "running", "refused", "aborted", "ended"]
SPLITTING: tuple[RolloutKind, ...] = ("canary", "ab")


@dataclass(frozen=True)
class RolloutState:
    """What the ledger says of one rollout.

    `step` is the place of the share in force (from 0), `since` the time of the step's start. `abort` is a wish to end
    it that the gateway has not carried out. `ready`: its last step held.
    """

    rollout: Rollout
    digest: str
    phase: Phase = "waiting"
    step: int = 0
    since: str = ""
    started_at: str = ""
    reason: str | None = None
    evidence: str | None = None
    abort: str | None = None
    ready: bool = False

    @property
    def open(self) -> bool:
        """Whether it has traffic or waits for it."""
        return self.phase in ("waiting", "running")

    @property
    def slot(self) -> str:
        """Which part of a name's routing it is: a name has one of each at a time."""
        return slot_of(self.rollout.kind)

    @property
    def share(self) -> float:
        """The part of the traffic that its arms get now, from 0 to 1."""
        if self.phase != "running" or self.rollout.kind not in SPLITTING:
            return 0.0
        steps = self.rollout.steps
        return steps[self.step] if steps else sum(arm.weight for arm in self.rollout.arms)


def slot_of(kind: RolloutKind) -> str:
    """The part of a name's routing that a kind of rollout takes; a canary and A/B arms both split the traffic."""
    return "split" if kind in SPLITTING else kind


# ---------------------------------------------------------------- where they stand


def fold_rollouts(store: Store, events: Iterable[Event]) -> tuple[dict[str, RolloutState], dict[str, str]]:
    """Every rollout by digest, oldest first, and by digest why the record of others cannot be read.

    Args:
        store: holds the records.
        events: oldest first; those that are not of ROLLOUT_KINDS say nothing.
    """
    states: dict[str, RolloutState] = {}
    damaged: dict[str, str] = {}
    for event in events:
        if event.kind == "release.activated":
            for digest, state in states.items():
                states[digest] = _after_release(state, event)
            continue
        if event.kind not in ROLLOUT_KINDS:
            continue
        digest = str(event.body["rollout"])
        if event.kind == "rollout.requested":
            try:
                states[digest] = RolloutState(store.get_record(Rollout, digest), digest)
            except InvalidEvidence as error:
                damaged[digest] = str(error)
        elif digest in states:
            states[digest] = _after(states[digest], event)
    return states, damaged


def _after(state: RolloutState, event: Event) -> RolloutState:
    body = event.body
    evidence = str(body["evidence"]) if body.get("evidence") else state.evidence
    reason = str(body["reason"]) if body.get("reason") else None
    if event.kind == "rollout.started":
        return replace(state, phase="running", since=event.at, started_at=event.at)
    if event.kind == "rollout.stepped":
        return replace(state, step=int(body["step"]), since=event.at, evidence=evidence)
    if event.kind == "rollout.ready":
        return replace(state, ready=True, evidence=evidence)
    if event.kind == "rollout.abort_requested":
        return replace(state, abort=reason or "")
    phase: Phase = "refused" if event.kind == "rollout.refused" else "aborted"
    return replace(state, phase=phase, since=event.at, reason=reason, evidence=evidence, abort=None)


def _after_release(state: RolloutState, event: Event) -> RolloutState:
    """What becomes of a rollout when its name moves."""
    if not state.open or state.rollout.public_name != event.body["public_name"]:
        return state
    champion = str(event.body["adapter"])
    why = over_because(state.rollout, champion)
    return state if why is None else replace(state, phase="ended", since=event.at, reason=why, abort=None)


def over_because(rollout: Rollout, champion: str) -> str | None:
    """Why a rollout is over once its name stands for `champion`; None while it goes on."""
    if any(arm.model == champion for arm in rollout.arms):
        return (
            "promoted: it is the champion now"
            if rollout.kind == "canary"
            else "its model became the champion"
        )
    if rollout.kind in SPLITTING and rollout.champion != champion:
        return f"the champion it was compared with was replaced by {short(champion)}"
    return None


def rollouts_of(registry: Registry, name: str | None = None) -> list[RolloutState]:
    """The rollouts of a public name (of all names), oldest first.

    Raises:
        InvalidEvidence: the record of one is missing or was altered.
    """
    states, damaged = fold_rollouts(registry.store, registry.ledger.events(*ROLLOUT_KINDS))
    for reason in damaged.values():
        raise InvalidEvidence(f"rollout: {reason}")
    return [state for state in states.values() if name in (None, state.rollout.public_name)]


def route_version(events: Iterable[Event]) -> int:
    """The version of the route table after these events (ROUTING_KINDS, oldest first): how many there were."""
    return sum(event.kind in ROUTING_KINDS and "by_engine" not in event.body for event in events)
