"""`llmops rollout status`: where every rollout stands, in the ledger and at the gateway that runs."""

from __future__ import annotations

import json as jsonlib
import urllib.request
from typing import Annotated, Any

import typer

from llmops.cli.output import as_json, table
from llmops.errors import BadRequest
from llmops.registry.adapters import Registry
from llmops.registry.rollouts import RolloutState, rollouts_of
from llmops.schema import JsonDict, short
from llmops.settings import Workspace, api_headers, find_workspace


def status(
    name: Annotated[str | None, typer.Argument(help="A public name; all without it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show rollouts: their phase and share, what the gateway counts now, and why ended ones ended."""
    workspace = find_workspace()
    registry = Registry.of(workspace)
    live = _live(workspace)
    found = [_shown(registry, state, live) for state in rollouts_of(registry, name)]
    if json:
        as_json(found)
        return
    head = ("name", "kind", "models", "phase", "share", "since")
    rows = [tuple(str(row[key]) for key in head) for row in found]
    typer.echo(table(head, rows))
    for row in found:
        for line in _notes(row):
            typer.echo(f"{row['name']} {row['kind']}: {line}")


def _shown(registry: Registry, state: RolloutState, live: dict[str, JsonDict]) -> JsonDict:
    rollout = state.rollout
    return {
        "rollout": state.digest, "name": rollout.public_name, "kind": rollout.kind,
        "models": ", ".join(called(registry, arm.model) for arm in rollout.arms),
        "phase": "ready" if state.ready and state.phase == "running" else state.phase,
        "share": f"{state.share:g}" if state.share else "-", "steps": list(rollout.steps), "step": state.step,
        "since": state.since or rollout.created_at, "reason": state.reason, "override": rollout.reason,
        "evidence": state.evidence, "decisions": [arm.decision for arm in rollout.arms],
        "live": live.get(state.digest),
    }  # fmt: skip


def _notes(row: JsonDict) -> list[str]:
    live = row["live"] or {}
    found = [f"OVERRIDE {row['override']}"] if row["override"] else []
    found += [f"{row['phase']}: {row['reason']}"] if row["reason"] else []
    found += [f"NO TRAFFIC: {live['problem']}"] if live.get("problem") else []
    for arm in live.get("window") or ():
        found.append(
            f"{arm['arm']}: {arm['n_requests']} requests, {arm['n_errors']} failed, in the running window"
        )
    votes = live.get("votes")
    if votes:
        found.append(
            f"votes: win rate {votes['win_rate']:.2f} [{votes['low']:.2f}, {votes['high']:.2f}], {votes['verdict']}"
        )
    return found


def called(registry: Registry, model: str) -> str:
    """A model's immutable name, of an adapter or the base."""
    try:
        return registry.adapter(model).model_name
    except BadRequest:
        return f"base@{short(model)}"


def _live(workspace: Workspace) -> dict[str, JsonDict]:
    """What the running gateway says of each rollout, by digest; empty when none runs or it does not tell."""
    from llmops.serving.server import running

    serving = running(workspace)
    if serving is None:
        return {}
    try:
        request = urllib.request.Request(f"{serving.url}/llmops/status", headers=api_headers())
        with urllib.request.urlopen(request, timeout=5) as response:
            names: dict[str, Any] = jsonlib.load(response)["routes"]["names"]
    except (OSError, ValueError, KeyError):
        return {}
    return {str(row["rollout"]): row for route in names.values() for row in route["rollouts"]}
