"""What must hold before a name may move or serve, read from ledger and store.

Everything here blocks; the gateway runs it in threads.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmops.errors import InvalidEvidence, ReleaseRefused
from llmops.ledger import Event
from llmops.records import AdapterRecord, Decision, EngineSignature, Release
from llmops.registry.adapters import Registry
from llmops.registry.engine_moves import ANSWERS
from llmops.registry.names import RELEASE_KINDS, NameState, readable_anchors, readable_states
from llmops.registry.release_checks import require_same_baseline, require_same_engine, verify_release
from llmops.registry.rollouts import ROLLOUT_KINDS, RolloutState, fold_rollouts, route_version
from llmops.schema import short


@dataclass(frozen=True)
class Broken:
    """A public name whose releases cannot be read: what its last activation named, and why it cannot be trusted."""

    adapter: str
    release: str
    reason: str


@dataclass(frozen=True)
class Replay:
    """The ledger at the gateway's start, by public name.

    `unanswered` requests stand oldest first, those about rollouts among them; `running` are the rollouts in force, and
    `version` is that of the route table. `chain_fault` is why the ledger itself cannot be trusted.
    """

    states: dict[str, NameState]
    broken: dict[str, Broken]
    unanswered: tuple[Event, ...]
    chain_fault: str | None
    last_seq: int
    running: tuple[RolloutState, ...]
    version: int


def replay(registry: Registry) -> Replay:
    """Check the ledger's chain and fold it by name: a damaged release stops its own name only."""
    fault = None
    try:
        registry.ledger.verify(readable_anchors(registry.store))
    except InvalidEvidence as error:
        fault = str(error)
    told = registry.ledger.events(*RELEASE_KINDS, *ROLLOUT_KINDS, "engine.switched")
    events = [event for event in told if event.kind in RELEASE_KINDS]
    states, damaged = readable_states(registry.store, events)
    active = {str(e.body["public_name"]): e.body for e in events if e.kind == "release.activated"}
    broken = {
        name: Broken(str(active[name]["adapter"]), str(active[name]["release"]), reason)
        for name, reason in damaged.items()
        if name in active
    }
    rollouts = fold_rollouts(registry.store, told)[0]
    running = tuple(state for state in rollouts.values() if state.phase == "running")
    last_seq = told[-1].seq if told else 0
    waiting = _unanswered(told, rollouts)
    return Replay(states, broken, waiting, fault, last_seq, running, route_version(told))


def unanswered(registry: Registry, up_to: int) -> tuple[Event, ...]:
    """Requests with a number up to `up_to` that no gateway has answered, oldest first."""
    told = registry.ledger.events(*RELEASE_KINDS, *ROLLOUT_KINDS)
    found = _unanswered(told, fold_rollouts(registry.store, told)[0])
    engines = registry.ledger.events("engine.requested", *ANSWERS)
    answered = {event.body.get("request") for event in engines if event.kind in ANSWERS}
    asked = [event for event in engines if event.kind not in ANSWERS and event.seq not in answered]
    waiting = sorted((*found, *asked), key=lambda event: event.seq)
    return tuple(event for event in waiting if event.seq <= up_to)


def _unanswered(told: list[Event], rollouts: dict[str, RolloutState]) -> tuple[Event, ...]:
    releases = [event for event in told if event.kind in RELEASE_KINDS]
    answered = {str(e.body["release"]) for e in releases if e.kind != "release.requested"}
    return tuple(event for event in told if _waits(event, answered, rollouts))


def _waits(event: Event, answered: set[str], rollouts: dict[str, RolloutState]) -> bool:
    """Whether an event is a request that no gateway has answered; `answered` are the releases that were."""
    if event.kind == "release.requested":
        return event.body["release"] not in answered
    if event.kind not in ("rollout.requested", "rollout.abort_requested"):
        return False
    state = rollouts.get(str(event.body["rollout"]))
    if state is None:  # its record is damaged
        return False
    return (
        state.phase == "waiting"
        if event.kind == "rollout.requested"
        else state.abort is not None and state.open
    )


def check_champion(registry: Registry, release: Release, engine: EngineSignature) -> AdapterRecord:
    """Everything a name in force stands on, byte by byte; returns its adapter.

    Raises:
        InvalidEvidence: something is missing or was altered.
        ReleaseRefused: its decision does not pass, or was measured on another engine than this one.
    """
    record = verify_release(registry, release)
    if release.decision is not None:
        decision = registry.store.get_record(Decision, release.decision)
        require_same_engine(decision, engine, release.public_name)
    return record


def check_request(
    registry: Registry, release: Release, state: NameState, engine: EngineSignature
) -> AdapterRecord:
    """Whether a requested release may be carried out on this state of its name; returns the adapter to route to.

    Raises:
        InvalidEvidence: something it stands on is missing or was altered.
        ReleaseRefused: the champion changed since it was requested or decided, or the engine is not the measured one.
    """
    name = release.public_name
    if release.replaces != state.champion_adapter:
        raise ReleaseRefused(
            f"release {name}: requested to replace {_short(release.replaces)}, but the champion is now "
            f"{_short(state.champion_adapter)}; ask again"
        )
    if release.kind == "rollback" and (state.previous is None or state.previous.adapter != release.adapter):
        raise ReleaseRefused(
            f"release {name}: {short(release.adapter)} is not the champion before the present one; ask again"
        )
    record = check_champion(registry, release, engine)
    if release.kind == "promote" and release.decision is not None:
        require_same_baseline(registry.store.get_record(Decision, release.decision), state)
    return record


def _short(digest: str | None) -> str:
    return short(digest) if digest else "none"
