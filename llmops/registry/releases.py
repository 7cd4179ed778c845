"""Releases: asking for a public name to move, and what must hold before it may.

The truth is the ledger. The command line appends `release.requested`; the gateway verifies, loads, proves and appends
`release.activated` or `release.refused`. Nothing here moves traffic.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llmops.engines.servability import require_servable
from llmops.errors import ApprovalsMissing, BadRequest, InvalidEvidence, LlmopsError, ReleaseRefused
from llmops.ledger import Event
from llmops.ratings.frozen import n_taken_back, verify_votes
from llmops.records import (
    AdapterRecord,
    Decision,
    EngineSignature,
    JudgeEvidence,
    JudgementSet,
    Release,
    Report,
)
from llmops.registry.adapters import Registry, require_generating, require_name
from llmops.registry.approvals import approvals_of, verify_approvals
from llmops.registry.names import NameState, name_state
from llmops.schema import short
from llmops.settings import now
from llmops.store import Store

# ---------------------------------------------------------------- requests


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


def required_approvals(registry: Registry, decision: Decision, name: str) -> tuple[str, ...]:
    """Digests of the first approvals of a decision, as many as its gate asks for."""
    digest = decision.digest()
    given = approvals_of(registry, digest) if decision.n_approvals else []
    if len(given) < decision.n_approvals:
        names = ", ".join(approval.approver for approval in given)
        raise ApprovalsMissing(
            f"release {name}: decision {short(digest)} has {len(given)} of {decision.n_approvals} approvals"
            f"{f' ({names})' if names else ''}; {'another person runs' if names else 'run'} "
            f"`llmops approve {short(digest)}`",
            digest,
        )
    return tuple(approval.digest() for approval in given[: decision.n_approvals])


def require_standing_votes(registry: Registry, decision: Decision, name: str) -> None:
    """Refuse to act on a decision whose votes were taken back since. What stands on it already goes on serving.

    Raises:
        InvalidEvidence: says how many.
    """
    judged = decision.judge.ratings if decision.judge else None
    for counted, what in ((decision.ratings, "votes"), (judged, "votes that calibrated the judge")):
        n = n_taken_back(registry.store, registry.ledger, counted) if counted else 0
        if counted and n:
            raise InvalidEvidence(
                f"release {name}: {n} of {counted.n_votes} {what} behind decision {short(decision.digest())} were "
                "taken back by their raters; open the campaign again, then `llmops gate check`"
            )


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


# ---------------------------------------------------------------- what must hold


def verify_release(registry: Registry, release: Release) -> AdapterRecord:
    """Check everything a release stands on, byte by byte; returns the adapter's record.

    Raises:
        BadRequest: the adapter is a reward model.
        InvalidEvidence: adapter, decision, report, completions, votes, ratings or approvals are missing, were altered,
            or do not belong together.
        ReleaseRefused: the decision does not pass, or is about another adapter.
        BadRequest: no engine serves the adapter as one (it is a DoRA adapter, to be merged).
    """
    where = f"release {release.public_name}"
    try:
        adapter = registry.adapter(release.adapter)
        require_generating(adapter)
        require_servable(registry.verify(adapter), f"{where}: adapter {adapter.model_name}")
        registry.contract(adapter)
        if release.decision is not None:
            decision = registry.store.get_record(Decision, release.decision)
            require_passing(decision, release.public_name)
            verify_decision(registry, decision, release.adapter, where)
            verify_approvals(registry, release.approvals, decision)
        elif release.kind == "promote" or not release.reason:
            raise ReleaseRefused(
                f"{where}: carries neither a decision nor an override's reason; promote it again"
            )
    except InvalidEvidence as error:
        raise InvalidEvidence(f"{where}: {error}") from error
    return adapter


def verify_decision(registry: Registry, decision: Decision, adapter: str, where: str) -> None:
    """Check what a decision about `adapter` (digest) was made from: reports, completions, votes and judgements.

    Raises:
        ReleaseRefused: it is about another adapter.
        InvalidEvidence: something of it is missing or was altered.
    """
    if decision.candidate != adapter:
        raise ReleaseRefused(
            f"{where}: the decision is about {short(decision.candidate)}, not {short(adapter)}"
        )
    _verify_reports(registry.store, decision.reports)
    if decision.ratings is not None:
        verify_votes(registry.store, registry.ledger, decision.ratings)
    _verify_judge(registry, decision.judge)


def _verify_judge(registry: Registry, judge: JudgeEvidence | None) -> None:
    """The judgements that a decision took into account, and the votes that calibrated them."""
    if judge is None:
        return
    record = registry.store.get_record(JudgementSet, judge.judgements)
    registry.store.verify("judgements", record.judgements)
    if judge.ratings is not None:
        verify_votes(registry.store, registry.ledger, judge.ratings)


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
    """Refuse a decision that was made while the name stood for another adapter.

    One against the base also serves the champion it is about: that is evidence of the same adapter on the same engine.

    Raises:
        ReleaseRefused: the champion has changed since.
    """
    champion = state.champion_adapter
    about_itself = champion == decision.candidate and decision.baseline == decision.base
    if champion != decision.champion and not about_itself:
        raise ReleaseRefused(
            f"release {state.name}: decided against {short(decision.baseline)}, but the champion is now "
            f"{short(state.baseline_for(decision.candidate, decision.base))}; evaluate again and run "
            "`llmops gate check`"
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
