"""`llmops status`: what is champion, on which evidence, what runs, what waits."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmops.checkpoints import resumable_runs
from llmops.cli.consent import approvals_in_words, win_rate_in_words
from llmops.cli.engine import described, gateway_at
from llmops.cli.output import as_json
from llmops.cli.rollout_status import called
from llmops.errors import CouldNotRun, LlmopsError
from llmops.ledger import Event
from llmops.records import Decision, Release
from llmops.registry.adapters import Registry
from llmops.registry.graph import build_graph
from llmops.registry.names import RELEASE_KINDS, NameState, readable_states
from llmops.registry.release_checks import verify_release
from llmops.registry.rollouts import ROLLOUT_KINDS, fold_rollouts
from llmops.registry.taken_back import is_marked
from llmops.schema import short
from llmops.settings import Workspace, find_workspace
from llmops.upkeep.runs import RUN_KINDS, holding


def status(json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False) -> None:
    """Show champions with their evidence (checked now), what runs, and what waits."""
    workspace = find_workspace()
    registry = Registry.of(workspace)
    states, damaged = readable_states(registry.store, registry.ledger.events(*RELEASE_KINDS))
    serving = _serving(workspace)
    told = _told(serving["url"]) if serving else {}
    routes = _routes(told)
    newest = _newest_decisions(registry)
    for name in newest.keys() - states.keys() - damaged.keys():
        states[name] = NameState(name)
    rollouts = _rollouts(registry)
    names = [
        _name(registry, state)
        | {"rollouts": rollouts.get(state.name, [])}
        | {"not_serving": routes.get(state.name), "open_decision": _open_decision(registry, state, newest)}
        for state in states.values()
    ]
    state = {
        "workspace": str(workspace.root),
        "serving": serving,
        "engines": told.get("engines", []),
        "gateways": _gateways(workspace),
        "names": names,
        "damaged": damaged,
        "unfinished": _unfinished(registry.ledger.events(*RUN_KINDS)),
        "resumable": _resumable(workspace, registry),
        "withdrawn": _withdrawn(registry),
        "adapters": len(registry.adapters()),
        "ledger_events": registry.ledger.head()[0],
    }
    if json:
        as_json(state)
    else:
        _print(state)


def _serving(workspace: Workspace) -> dict[str, Any] | None:
    from llmops.serving.server import running

    info = running(workspace)
    return {"url": info.url, "pid": info.pid, "engine": info.engine.to_pairs()} if info else None


def _gateways(workspace: Workspace) -> list[dict[str, Any]]:
    """The gateways on a shared database, the leading one first; none where the workspace has a file of its own."""
    from llmops.serving.seat import seated

    return [{"who": one.who, "leads": one.leads} for one in seated(workspace.database_url)]


def _told(url: str) -> dict[str, Any]:
    """What the running gateway says of itself; empty if it does not say."""
    try:
        return gateway_at(url)
    except CouldNotRun:
        return {}


def _routes(told: dict[str, Any]) -> dict[str, str | None]:
    """By public name why the running gateway does not serve it, None where it does."""
    names = told.get("routes", {}).get("names", {})
    return {name: None if route["ok"] else str(route["reason"]) for name, route in names.items()}


def _unfinished(events: list[Event]) -> dict[str, str]:
    """Runs whose newest event is their start, with its time: they run, or were killed."""
    newest = {str(e.body["run"]): e for e in events}
    return {run: e.at for run, e in newest.items() if e.kind in ("run.started", "run.resumed")}


def _resumable(workspace: Workspace, registry: Registry) -> dict[str, dict[str, int]]:
    """Runs that were interrupted or killed and can be gone on with, and behind which of how many steps."""
    found = {}
    for run in resumable_runs(workspace, registry.ledger):
        with holding(run.folder) as held:
            if held:
                found[run.run] = {"step": run.checkpoint.step, "n_steps": run.n_steps}
    return found


def _rollouts(registry: Registry) -> dict[str, list[str]]:
    """By public name its rollouts that have traffic or wait for it, in words."""
    states, _ = fold_rollouts(registry.store, registry.ledger.events(*ROLLOUT_KINDS))
    found: dict[str, list[str]] = {}
    for state in states.values():
        if state.open:
            rollout = state.rollout
            share = f" {100 * state.share:g} %" if state.share else ""
            override = f"; OVERRIDE {rollout.reason} (by {rollout.requested_by})" if rollout.reason else ""
            models = ", ".join(called(registry, arm.model) for arm in rollout.arms)
            said = f"{rollout.kind}{share} {models} {state.phase}{override}"
            found.setdefault(rollout.public_name, []).append(said)
    return found


def _withdrawn(registry: Registry) -> list[str]:
    """What rests on ratings that their raters took back, in words; empty while nobody withdrew."""
    if not registry.ledger.events("rater.withdrawn", "texts.deleted"):
        return []
    nodes = build_graph(registry).nodes.values()
    return [f"{n.title} {n.problem}" for n in nodes if n.kind != "rating" and is_marked(n)]


def _newest_decisions(registry: Registry) -> dict[str, str]:
    """By public name the digest of the newest decision about it."""
    made = registry.ledger.events("decision.made")
    return {str(e.body["public_name"]): str(e.body["decision"]) for e in made}


def _open_decision(registry: Registry, state: NameState, newest: dict[str, str]) -> str | None:
    """The newest decision in words, while no release stands on it: votes, approvals, and what comes next."""
    digest = newest.get(state.name)
    releases = [*state.history, *([state.pending[1]] if state.pending else [])]
    if digest is None or digest in {release.decision for release in releases}:
        return None
    try:
        decision = registry.store.get_record(Decision, digest)
    except LlmopsError as error:
        return f"BROKEN: {error}"
    said = f"{decision.verdict} {short(digest)} about {_adapter(registry, decision.candidate)}"
    return f"{said}{_people(registry, decision)}"


def _people(registry: Registry, decision: Decision) -> str:
    """What people said about a decision, to go behind what the metrics say; empty when nobody is asked."""
    votes = win_rate_in_words(decision)
    said = [votes] if votes else []
    if decision.n_approvals:
        said.append(f"approvals {approvals_in_words(registry, decision)}")
    return "".join(f"; {part}" for part in said)


def _name(registry: Registry, state: NameState) -> dict[str, Any]:
    champion = state.champion
    return {
        "name": state.name,
        "champion": _model(registry, champion) if champion else None,
        "by": champion.kind if champion else None,
        "since": champion.created_at if champion else None,
        "override": f"{champion.reason} (by {champion.requested_by})"
        if champion and champion.decision is None
        else None,
        "evidence": _evidence(registry, champion) if champion else None,
        "previous": _model(registry, state.previous) if state.previous else None,
        "waiting": f"{state.pending[1].kind} to {_model(registry, state.pending[1])}"
        if state.pending
        else None,
        "refused": state.refusal,
    }


def _model(registry: Registry, release: Release) -> str:
    return _adapter(registry, release.adapter)


def _adapter(registry: Registry, digest: str) -> str:
    try:
        return registry.adapter(digest).model_name
    except LlmopsError:
        return f"?@{short(digest)}"


def _evidence(registry: Registry, release: Release) -> str:
    """The champion's evidence in words, after checking all of it."""
    try:
        verify_release(registry, release)
    except LlmopsError as error:
        return f"BROKEN: {error}"
    if release.decision is None:
        return "NONE: emergency override"
    decision = registry.store.get_record(Decision, release.decision)
    checks = ", ".join(
        f"{c.metric} {c.difference:+.1f} [{c.low:+.1f}, {c.high:+.1f}]"
        for c in decision.checks
        if c.metric != "win_rate"
    )
    said = f"{decision.verdict} {short(release.decision)} against {short(decision.baseline)}: {checks}"
    return said + _people(registry, decision)


def _print(state: dict[str, Any]) -> None:
    typer.echo(
        f"workspace  {state['workspace']}: {state['adapters']} adapters, {state['ledger_events']} ledger events"
    )
    serving = state["serving"]
    if serving:
        engine = serving["engine"]
        typer.echo(
            f"serving    {serving['url']} (pid {serving['pid']}): "
            f"{engine['engine']} {engine['version']} {engine['dtype']}"
        )
    else:
        typer.echo("serving    nothing; `llmops serve serving/local.yaml` starts it")
    for engine in state["engines"]:
        if not engine["serves"]:
            typer.echo(f"stands by  {engine['colour']}: {described(engine)}")
    for gateway in state["gateways"]:
        typer.echo(f"gateways   {gateway['who']} ({'leads' if gateway['leads'] else 'follows'})")
    for name in state["names"]:
        _print_name(name)
    if not state["names"]:
        typer.echo("names      none released yet")
    for name, reason in state["damaged"].items():
        typer.echo(f"{name:<10} BROKEN: {reason}")
    for line in state["withdrawn"]:
        typer.echo(f"flagged    {line}")
    for run, since in state["unfinished"].items():
        if run not in state["resumable"]:
            typer.echo(f"unfinished {run}, since {since}")
    for run, at in state["resumable"].items():
        typer.echo(
            f"resumable  {run}, behind step {at['step']} of {at['n_steps']}: llmops finetune --resume --run {run}"
        )


def _print_name(name: dict[str, Any]) -> None:
    typer.echo(
        f"{name['name']:<10} champion {name['champion'] or 'none'}"
        + (f" by {name['by']} {name['since']}" if name["by"] else "")
    )
    for label, key in (
        ("evidence", "evidence"),
        ("NOT SERVING", "not_serving"),
        ("OVERRIDE", "override"),
        ("previous", "previous"),
        ("decision", "open_decision"),
        ("waiting", "waiting"),
        ("refused", "refused"),
    ):
        if name[key]:
            typer.echo(f"           {label} {name[key]}")
    for said in name["rollouts"]:
        typer.echo(f"           rollout  {said}")
