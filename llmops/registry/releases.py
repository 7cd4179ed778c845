"""Releases: asking for a public name to move. What must hold before it may is `llmops.registry.release_checks`.

The truth is the ledger. The command line appends `release.requested`; the gateway verifies, loads, proves and appends
`release.activated` or `release.refused`. Nothing here moves traffic.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass
from typing import Literal

from llmops.errors import BadRequest, LlmopsError, ReleaseRefused
from llmops.ledger import Event
from llmops.records import (
    AdapterRecord,
    Decision,
    EngineSignature,
    Release,
)
from llmops.registry.adapters import Registry, require_name
from llmops.registry.names import NameState, name_state
from llmops.registry.release_checks import (
    require_passing,
    require_same_baseline,
    require_same_engine,
    require_standing_votes,
    required_approvals,
    verify_release,
)
from llmops.schema import short
from llmops.settings import now


def request_promotion(
    registry: Registry, name: str, engine: EngineSignature | None, decision: str | None = None
) -> tuple[Event, Release]:
    """Ask for the candidate of the newest decision about `name` to become its champion.

    `engine` is what serves now, None when nothing does (the gateway checks again when it starts). `decision` (digest)
    is the one to act on, for who has waited for its approvals: it must be the newest still.

    Raises:
        ReleaseRefused: no decision, one that is not PASS, or one that no longer fits the champion or the engine.
        ApprovalsMissing: it passes, and fewer people than its gate asks for have approved it.
        InvalidEvidence: a file or record of the evidence is missing or was altered.
    """
    require_name(name)
    state = name_state(registry, name)
    digest = _newest_decision(registry, name)
    if decision not in (None, digest):
        raise ReleaseRefused(
            f"release {name}: decision {short(digest)} is newer than {short(str(decision))}; see `llmops gate show`"
        )
    found = registry.store.get_record(Decision, digest)
    if state.champion_adapter == found.candidate and not _measured_anew(registry, state, found):
        raise BadRequest(f"release {name}: {short(found.candidate)} is the champion already; nothing to do")
    require_passing(found, name)
    require_same_baseline(found, state)
    if engine is not None:
        require_same_engine(found, engine, name)
    require_standing_votes(registry, found, name)
    approvals = required_approvals(registry, found, name)
    return _request(registry, state, Move("promote", found.candidate, digest, approvals))


def _newest_decision(registry: Registry, name: str) -> str:
    made = [e for e in registry.ledger.events("decision.made") if e.body["public_name"] == name]
    if not made:
        raise ReleaseRefused(f"release {name}: no gate decision; run `llmops eval`, then `llmops gate check`")
    return str(made[-1].body["decision"])


def _measured_anew(registry: Registry, state: NameState, decision: Decision) -> bool:
    """Whether a decision about the champion itself says something new: it had none, a broken one, or another engine."""
    champion = state.champion
    if champion is None or champion.decision is None:
        return True
    try:
        verify_release(registry, champion)
    except LlmopsError:
        return True  # evidence that was lost is made good by new evidence, which is checked before the name moves
    return registry.store.get_record(Decision, champion.decision).engine != decision.engine


def request_rollback(registry: Registry, name: str, reason: str | None) -> tuple[Event, Release]:
    """Ask for the champion before the present one, with the evidence it was released on.

    Raises:
        BadRequest: there is no earlier release.
    """
    state = name_state(registry, name)
    if state.previous is None:
        raise BadRequest(
            f"release {name}: no earlier release to roll back to; `llmops status` shows the history"
        )
    back = state.previous
    move = Move("rollback", back.adapter, back.decision, back.approvals, reason or back.reason)
    return _request(registry, state, move)


def request_override(
    registry: Registry, name: str, adapter: AdapterRecord, reason: str
) -> tuple[Event, Release]:
    """Ask for an adapter without evidence: named, with a reason, and shown in every status while it stands.

    Raises:
        BadRequest: no reason.
    """
    require_name(name)
    if len(reason.strip()) < 10:
        raise BadRequest(
            f"release {name}: an override needs a reason of at least 10 characters (found {reason!r})"
        )
    move = Move("override", adapter.adapter, reason=reason.strip())
    return _request(registry, name_state(registry, name), move)


@dataclass(frozen=True)
class Move:
    """What a release points a name at, and what it stands on."""

    kind: Literal["promote", "rollback", "override"]
    adapter: str
    decision: str | None = None
    approvals: tuple[str, ...] = ()
    reason: str | None = None


def _request(registry: Registry, state: NameState, move: Move) -> tuple[Event, Release]:
    """Write the release down and ask the gateway for it, once everything it stands on is checked."""
    release = write_release(registry, state, move)
    body = {
        "public_name": state.name,
        "release": release.digest(),
        "kind": release.kind,
        "adapter": release.adapter,
    }
    return registry.ledger.append("release.requested", body), release


def write_release(registry: Registry, state: NameState, move: Move) -> Release:
    """Write a release into the store, once everything it stands on is checked; nobody is asked to carry it out.

    Raises:
        LlmopsError: as `verify_release`; another release of the name waits.
    """
    seq, head = registry.ledger.head()
    release = Release(
        public_name=state.name,
        kind=move.kind,
        adapter=move.adapter,
        replaces=state.champion_adapter,
        decision=move.decision,
        approvals=move.approvals,
        reason=move.reason,
        requested_by=getpass.getuser(),
        ledger_seq=seq,
        ledger_head=head,
        created_at=now(),
    )
    verify_release(registry, release)
    if state.pending is not None:
        waiting = state.pending[1]
        raise BadRequest(
            f"release {state.name}: a {waiting.kind} to {short(waiting.adapter)} is waiting; "
            "start `llmops serve` to settle it"
        )
    registry.store.put_record(release)
    return release
