"""What must hold before a public name may move, and while a release is in force.

Everything here blocks: it reads the store, the ledger and every byte that a release stands on.
"""

from __future__ import annotations

from collections.abc import Iterable

from llmops.engines.servability import require_servable
from llmops.errors import ApprovalsMissing, InvalidEvidence, ReleaseRefused
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
from llmops.registry.adapters import Registry, require_generating
from llmops.registry.approvals import approvals_of, verify_approvals
from llmops.registry.names import NameState
from llmops.schema import short
from llmops.store import Store


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
