"""Asking for a rollout, and what must hold before it may have traffic. Nothing here moves any."""

from __future__ import annotations

import getpass
from dataclasses import dataclass, replace

from llmops.engines.servability import require_servable
from llmops.errors import BadRequest, InvalidEvidence, LlmopsError, ReleaseRefused
from llmops.ledger import Event
from llmops.records import (
    CascadeRule,
    Decision,
    EngineSignature,
    Rollout,
    RolloutArm,
    RolloutKind,
    ShadowRule,
    SloRule,
    VoteRule,
)
from llmops.registry.adapters import Registry, require_generating, require_name
from llmops.registry.names import NameState, name_state
from llmops.registry.release_checks import (
    require_passing,
    require_same_baseline,
    require_same_engine,
    verify_decision,
)
from llmops.registry.rollouts import SPLITTING, RolloutState, rollouts_of, slot_of
from llmops.schema import short
from llmops.settings import now

MIN_REASON = 10


@dataclass(frozen=True)
class Draft:
    """What somebody asks for, before its evidence is looked up; `arms` have no decision yet."""

    kind: RolloutKind
    arms: tuple[RolloutArm, ...]
    steps: tuple[float, ...] = ()
    votes: VoteRule | None = None
    slo: SloRule | None = None
    shadow: ShadowRule | None = None
    cascade: CascadeRule | None = None
    reason: str | None = None


def request_rollout(
    registry: Registry, name: str, draft: Draft, engine: EngineSignature | None
) -> tuple[Event, Rollout]:
    """Ask the gateway to send part of a name's traffic elsewhere.

    `engine` is what serves now, None when nothing does (the gateway checks again when it starts).

    Raises:
        BadRequest: the name has no champion, has such a rollout already, or an arm is the champion itself.
        ReleaseRefused: an arm has no passing decision that fits the champion and the engine, and no reason is given.
        InvalidEvidence: a file or record of the evidence is missing or was altered.
    """
    require_name(name)
    state = name_state(registry, name)
    if state.champion_adapter is None:
        raise BadRequest(f"rollout {name}: no champion yet; `llmops release promote {name}` comes first")
    for other in rollouts_of(registry, name):
        if other.open and other.slot == slot_of(draft.kind):
            raise BadRequest(
                f"rollout {name}: a {other.rollout.kind} is {other.phase} already; end it with "
                f"`llmops rollout abort {name} --kind {other.rollout.kind}`, or promote it"
            )
    reason = draft.reason.strip() if draft.reason else None
    if reason is not None and len(reason) < MIN_REASON:
        raise BadRequest(
            f"rollout {name}: an override needs a reason of at least {MIN_REASON} characters (found {reason!r})"
        )
    seq, head = registry.ledger.head()
    rollout = Rollout(
        public_name=name, kind=draft.kind, arms=tuple(_founded(registry, state, draft, arm) for arm in draft.arms),
        champion=state.champion_adapter, steps=draft.steps, votes=draft.votes, slo=draft.slo, shadow=draft.shadow,
        cascade=draft.cascade, reason=reason, requested_by=getpass.getuser(), ledger_seq=seq, ledger_head=head,
        created_at=now(),
    )  # fmt: skip
    verify_rollout(registry, rollout, state, engine)
    digest = registry.store.put_record(rollout)
    body = {
        "public_name": name,
        "rollout": digest,
        "kind": rollout.kind,
        "models": [a.model for a in rollout.arms],
    }
    return registry.ledger.append("rollout.requested", body), rollout


def _founded(registry: Registry, state: NameState, draft: Draft, arm: RolloutArm) -> RolloutArm:
    """The arm with the newest decision about it, where it needs one."""
    if draft.kind == "shadow" or draft.reason or arm.model == base_of(registry, state):
        return arm
    released = [r for r in state.history if r.adapter == arm.model and r.decision]
    made = [
        str(e.body["decision"])
        for e in registry.ledger.events("decision.made")
        if e.body["public_name"] == state.name and e.body["candidate"] == arm.model
    ]
    if draft.kind not in SPLITTING and released:
        return replace(arm, decision=released[-1].decision)
    if not made:
        raise ReleaseRefused(
            f"rollout {state.name}: no gate decision about {short(arm.model)}; run `llmops eval`, then `llmops gate "
            "check`, or give --override with a reason"
        )
    return replace(arm, decision=made[-1])


def request_abort(
    registry: Registry, name: str, kind: RolloutKind | None, reason: str
) -> tuple[Event, RolloutState]:
    """Ask the gateway to take the traffic of a name's rollout away.

    Raises:
        BadRequest: there is none (of that kind), or more than one and `kind` does not say which.
    """
    found = [s for s in rollouts_of(registry, name) if s.open and kind in (None, s.rollout.kind)]
    if len(found) != 1:
        which = ", ".join(s.rollout.kind for s in found)
        problem = f"several rollouts ({which}); say which with --kind" if found else "no rollout to abort"
        raise BadRequest(f"rollout {name}: {problem}; `llmops rollout status` shows them")
    state = found[0]
    body = {"public_name": name, "rollout": state.digest, "reason": reason}
    return registry.ledger.append("rollout.abort_requested", body), state


# ---------------------------------------------------------------- what must hold


def verify_rollout(
    registry: Registry, rollout: Rollout, state: NameState, engine: EngineSignature | None
) -> None:
    """Check everything a rollout stands on, byte by byte, on this state of its name.

    Raises:
        BadRequest: an arm is the champion, a reward model, or a kind no engine serves.
        InvalidEvidence: an adapter, decision or what that stands on is missing or was altered.
        ReleaseRefused: a decision does not pass, is about another model, champion or engine, or there is none.
    """
    where = f"rollout {rollout.public_name}"
    if rollout.champion != state.champion_adapter and rollout.kind in SPLITTING:
        raise ReleaseRefused(
            f"{where}: asked for against {short(rollout.champion)}, which is not champion; ask again"
        )
    base = base_of(registry, state)
    for arm in rollout.arms:
        if arm.model == state.champion_adapter:
            raise BadRequest(f"{where}: {short(arm.model)} is the champion already; nothing to roll out")
        try:
            if arm.model != base:
                adapter = registry.adapter(arm.model)
                require_generating(adapter)
                require_servable(registry.verify(adapter), f"{where}: adapter {adapter.model_name}")
                registry.contract(adapter)
            if arm.decision is not None:
                _verify_arm(registry, rollout, arm, (state, engine))
            elif not (rollout.kind == "shadow" or rollout.reason or arm.model == base):
                raise ReleaseRefused(
                    f"{where}: arm {arm.name} carries neither a decision nor a reason; ask again"
                )
        except InvalidEvidence as error:
            raise InvalidEvidence(f"{where}: {error}") from error


def _verify_arm(
    registry: Registry, rollout: Rollout, arm: RolloutArm, place: tuple[NameState, EngineSignature | None]
) -> None:
    state, engine = place
    decision = registry.store.get_record(Decision, str(arm.decision))
    require_passing(decision, rollout.public_name)
    verify_decision(registry, decision, arm.model, f"rollout {rollout.public_name}")
    if rollout.kind in SPLITTING:
        require_same_baseline(decision, state)
    if engine is not None:
        require_same_engine(decision, engine, rollout.public_name)


def base_of(registry: Registry, state: NameState) -> str | None:
    """Digest of the base that a name's champion was trained on; None where its record cannot be read."""
    if state.champion_adapter is None:
        return None
    try:
        return registry.adapter(state.champion_adapter).base
    except LlmopsError:
        return None
