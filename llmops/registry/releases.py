"""Releases: asking for a public name to move, and what must hold before it may.

The truth is the ledger. The command line appends `release.requested`; the gateway verifies, loads, proves and appends
`release.activated` or `release.refused`. Nothing here moves traffic.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable

from llmops.errors import BadRequest, InvalidEvidence, ReleaseRefused
from llmops.ledger import Event
from llmops.records import AdapterRecord, Decision, EngineSignature, Release, Report
from llmops.registry.adapters import Registry, require_name
from llmops.registry.names import NameState, name_state
from llmops.schema import short
from llmops.settings import now
from llmops.store import Store

# ---------------------------------------------------------------- requests


def request_promotion(registry: Registry, name: str, engine: EngineSignature | None) -> tuple[Event, Release]:
    """Ask for the candidate of the newest decision about `name` to become its champion.

    `engine` is what serves now, None when nothing does (the gateway checks again when it starts).

    Raises:
        ReleaseRefused: no decision, one that is not PASS, or one that no longer fits the champion or the engine.
        InvalidEvidence: a file or record of the evidence is missing or was altered.
    """
    require_name(name)
    state = name_state(registry, name)
    decisions = [e for e in registry.ledger.events("decision.made") if e.body["public_name"] == name]
    if not decisions:
        raise ReleaseRefused(f"release {name}: no gate decision; run `llmops eval`, then `llmops gate check`")
    digest = str(decisions[-1].body["decision"])
    decision = registry.store.get_record(Decision, digest)
    if state.champion_adapter == decision.candidate and not _measured_anew(registry, state, decision):
        raise BadRequest(
            f"release {name}: {short(decision.candidate)} is the champion already; nothing to do"
        )
    require_passing(decision, name)
    require_same_baseline(decision, state)
    if engine is not None:
        require_same_engine(decision, engine, name)
    release = _new_release(registry, state, "promote", decision.candidate, digest, None)
    verify_release(registry, release)
    return _request(registry, state, release), release


def _measured_anew(registry: Registry, state: NameState, decision: Decision) -> bool:
    """Whether a decision about the champion itself says something new: it had none, or one about another engine."""
    if state.champion is None or state.champion.decision is None:
        return True
    return registry.store.get_record(Decision, state.champion.decision).engine != decision.engine


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
    release = _new_release(registry, state, "rollback", back.adapter, back.decision, reason or back.reason)
    verify_release(registry, release)
    return _request(registry, state, release), release


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
    state = name_state(registry, name)
    release = _new_release(registry, state, "override", adapter.adapter, None, reason.strip())
    verify_release(registry, release)
    return _request(registry, state, release), release


def _new_release(
    registry: Registry, state: NameState, kind: str, adapter: str, decision: str | None, reason: str | None
) -> Release:
    seq, head = registry.ledger.head()
    return Release(
        public_name=state.name,
        kind=kind,  # type: ignore[arg-type]
        adapter=adapter,
        replaces=state.champion_adapter,
        decision=decision,
        approvals=(),
        reason=reason,
        requested_by=getpass.getuser(),
        ledger_seq=seq,
        ledger_head=head,
        created_at=now(),
    )


def _request(registry: Registry, state: NameState, release: Release) -> Event:
    if state.pending is not None:
        waiting = state.pending[1]
        raise BadRequest(
            f"release {state.name}: a {waiting.kind} to {short(waiting.adapter)} is waiting; "
            "start `llmops serve` to settle it"
        )
    digest = registry.store.put_record(release)
    body = {"public_name": state.name, "release": digest, "kind": release.kind, "adapter": release.adapter}
    return registry.ledger.append("release.requested", body)


# ---------------------------------------------------------------- what must hold


def verify_release(registry: Registry, release: Release) -> AdapterRecord:
    """Check everything a release stands on, byte by byte; returns the adapter's record.

    Raises:
        InvalidEvidence: adapter, decision, report or completions are missing or were altered.
        ReleaseRefused: the decision does not pass, or is about another adapter.
    """
    where = f"release {release.public_name}"
    try:
        adapter = registry.adapter(release.adapter)
        registry.verify(adapter)
        registry.contract(adapter)
        if release.decision is not None:
            decision = registry.store.get_record(Decision, release.decision)
            require_passing(decision, release.public_name)
            if decision.candidate != release.adapter:
                raise ReleaseRefused(
                    f"{where}: the decision is about {short(decision.candidate)}, not {short(release.adapter)}"
                )
            _verify_reports(registry.store, decision.reports)
        elif release.kind == "promote" or not release.reason:
            raise ReleaseRefused(
                f"{where}: carries neither a decision nor an override's reason; promote it again"
            )
    except InvalidEvidence as error:
        raise InvalidEvidence(f"{where}: {error}") from error
    return adapter


def _verify_reports(store: Store, digests: Iterable[str]) -> None:
    for digest in digests:
        store.verify("completions", store.get_record(Report, digest).completions)


def require_passing(decision: Decision, name: str) -> None:
    """Refuse a decision that is not PASS.

    Raises:
        ReleaseRefused: with the verdict and its first reason.
    """
    if decision.verdict != "PASS":
        why = f" ({decision.reasons[0]})" if decision.reasons else ""
        raise ReleaseRefused(
            f"release {name}: the gate said {decision.verdict} about {short(decision.candidate)}{why}; "
            "see `llmops gate show`",
            decision.verdict,
        )


def require_same_baseline(decision: Decision, state: NameState) -> None:
    """Refuse a decision whose baseline is no longer the champion (the base, while there is none).

    Raises:
        ReleaseRefused: the champion has changed since.
    """
    champion = state.baseline_for(decision.candidate, decision.base)
    if decision.baseline != champion:
        raise ReleaseRefused(
            f"release {state.name}: decided against {short(decision.baseline)}, "
            f"but the champion is now {short(champion)}; evaluate again and run `llmops gate check`"
        )


def require_same_engine(decision: Decision, engine: EngineSignature, name: str) -> None:
    """Refuse to serve on another engine than the one that was measured.

    Raises:
        ReleaseRefused: names the first part that differs.
    """
    if decision.engine == engine:
        return
    measured = decision.engine.to_pairs() if decision.engine else {}
    serving = engine.to_pairs()
    part = next(k for k in serving if measured.get(k) != serving[k])
    raise ReleaseRefused(
        f"release {name}: measured on {part}={measured.get(part)}, this engine has {part}={serving[part]}; "
        "evaluate on the engine that serves"
    )
