"""Changing the engine under a running gateway: what its settings are, and which releases may go along.

The command line appends `engine.requested`; the gateway answers with `engine.started`, `engine.switched`,
`engine.retired` or `engine.refused`. Nothing here starts an engine or moves traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from llmops.errors import BadRequest, LlmopsError, ReleaseRefused
from llmops.ledger import Event, EventKind
from llmops.records import Decision, EngineSettings, EngineSignature, Release, StartedEngine
from llmops.registry.adapters import Registry
from llmops.registry.names import RELEASE_KINDS, NameState, readable_states
from llmops.registry.release_checks import (
    require_passing,
    require_same_baseline,
    require_same_engine,
    require_standing_votes,
    required_approvals,
)
from llmops.registry.releases import Move, write_release
from llmops.schema import JsonDict, short

Action = Literal["start", "switch", "back", "retire"]
ANSWERS: tuple[EventKind, ...] = ("engine.started", "engine.switched", "engine.retired", "engine.refused")


def request_engine(registry: Registry, action: Action, body: JsonDict) -> Event:
    """Ask the gateway to do something about its engines."""
    return registry.ledger.append("engine.requested", {"action": action, **body})


def answer_to(registry: Registry, request: Event) -> Event | None:
    """The gateway's answer to a request; None while there is none."""
    answers = registry.ledger.events(*ANSWERS, after=request.seq)
    return next((event for event in answers if event.body.get("request") == request.seq), None)


def settings_in_force(registry: Registry, given: EngineSettings) -> EngineSettings:
    """What a gateway that is told `given` serves: what took its place by a switch, by what the ledger says, else it.

    Raises:
        InvalidEvidence: the record of what took its place is missing or was altered.
    """
    digest = given.digest()
    for event in registry.ledger.events("engine.switched"):
        if event.body["instead_of"] == digest:
            digest = str(event.body["settings"])
    return given if digest == given.digest() else registry.store.get_record(EngineSettings, digest)


def newest_started(registry: Registry) -> StartedEngine:
    """The engine that was started last beside the one that serves.

    Raises:
        BadRequest: none ever was.
        InvalidEvidence: its record is missing or was altered.
    """
    started = registry.ledger.events("engine.started")
    if not started:
        raise BadRequest("engine: none stands beside the one that serves; run `llmops engine start PROFILE`")
    return registry.store.get_record(StartedEngine, str(started[-1].body["started"]))


# ---------------------------------------------------------------- which releases go along


def plan_switch(registry: Registry, engine: EngineSignature, chosen: Mapping[str, str]) -> dict[str, Release]:
    """The release of every public name that may serve on `engine`, by name; those that are new lie in the store.

    A champion whose evidence is of that engine (or that has none, by an override) goes along as it is. Else the name
    needs a passing decision measured there: about the champion itself, or, where the base is another one, about an
    adapter of that base; `chosen` names another adapter (digest) for some names.

    Raises:
        BadRequest: `chosen` has a name without a champion.
        ReleaseRefused: a name has none, or approvals are missing; says which, why, and what to run.
        InvalidEvidence: something that one stands on is missing or was altered.
    """
    states = readable_states(registry.store, registry.ledger.events(*RELEASE_KINDS))[0]
    serving = {name: state for name, state in states.items() if state.champion is not None}
    for name in chosen.keys() - serving.keys():
        raise BadRequest(
            f"engine switch: --release {name}: there is no such public name; known: {_list(serving)}"
        )
    releases: dict[str, Release] = {}
    problems: list[LlmopsError] = []
    for name, state in serving.items():
        try:
            releases[name] = _release_on(registry, state, engine, chosen.get(name))
        except LlmopsError as error:
            problems.append(error)
    if len(problems) > 1:
        raise ReleaseRefused("engine switch: " + "; ".join(map(str, problems)))
    for problem in problems:
        raise problem
    return releases


def stands_on(registry: Registry, release: Release, engine: EngineSignature) -> bool:
    """Whether what a release stands on was measured on `engine`; a release without a decision fits any of its base."""
    if registry.adapter(release.adapter).base != engine.base:
        return False
    if release.decision is None:
        return True
    return registry.store.get_record(Decision, release.decision).engine == engine


def _release_on(
    registry: Registry, state: NameState, engine: EngineSignature, adapter: str | None
) -> Release:
    champion = state.champion
    assert champion is not None
    if adapter is None and stands_on(registry, champion, engine):
        return champion
    if adapter is None and registry.adapter(champion.adapter).base == engine.base:
        adapter = champion.adapter
    decision = decision_on(registry, state.name, engine, adapter)
    if decision is None:
        raise ReleaseRefused(_missing(registry, champion, engine, adapter))
    require_passing(decision, state.name)
    require_same_baseline(decision, state)
    require_standing_votes(registry, decision, state.name)
    approvals = required_approvals(registry, decision, state.name)
    return write_release(registry, state, Move("promote", decision.candidate, decision.digest(), approvals))


def decision_on(
    registry: Registry, name: str, engine: EngineSignature, adapter: str | None = None
) -> Decision | None:
    """The newest decision about a name (and an adapter) that was measured on `engine`.

    The last word about a candidate counts, and a candidate that passed comes before one that did not.
    """
    newest: dict[str, Decision] = {}
    for event in registry.ledger.events("decision.made"):
        if event.body["public_name"] != name:
            continue
        decision = registry.store.get_record(Decision, str(event.body["decision"]))
        if decision.engine == engine and adapter in (None, decision.candidate):
            newest.pop(decision.candidate, None)
            newest[decision.candidate] = decision
    found = list(reversed(newest.values()))
    return next((d for d in found if d.verdict == "PASS"), found[0] if found else None)


def _missing(registry: Registry, champion: Release, engine: EngineSignature, adapter: str | None) -> str:
    """What a name lacks to serve on an engine, and what to run."""
    name = champion.public_name
    if adapter is None:
        model, why = "ADAPTER", f"no decision about an adapter of base {short(engine.base)} on the new engine"
    else:
        model = registry.adapter(adapter).model_name
        why = f"no decision about {model} on the new engine"
        if champion.decision is not None and adapter == champion.adapter:
            try:
                require_same_engine(registry.store.get_record(Decision, champion.decision), engine, name)
            except ReleaseRefused as refused:
                why = str(refused).removeprefix(f"release {name}: ").partition(";")[0]
    return (
        f"engine switch {name}: {why}; run `llmops eval SUITE --adapter {model} --engine green`, then "
        f"`llmops gate check GATE --adapter {model}`"
    )


def _list(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
