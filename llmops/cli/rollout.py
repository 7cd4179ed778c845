"""`llmops rollout`: share a public name's traffic with other models, and watch what comes of it."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from llmops.cli.release import ANSWER_TIMEOUT_S, POLL_S, settle
from llmops.cli.rollout_status import called, status
from llmops.errors import BadRequest, CouldNotRun, ReleaseRefused
from llmops.ledger import Event, EventKind
from llmops.records import CascadeRule, RolloutArm, RolloutKind, ShadowRule
from llmops.registry.adapters import Registry
from llmops.registry.names import name_state
from llmops.registry.releases import request_promotion
from llmops.registry.rollouts import rollouts_of
from llmops.schema import short
from llmops.settings import find_workspace

if TYPE_CHECKING:
    from llmops.registry.rollout_requests import Draft

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Share a public name's traffic with other models."
)

_ARM = re.compile(r"(?P<name>[a-z][a-z0-9_-]{0,31})=(?P<model>[^:]+):(?P<weight>[0-9.]+)")
ANSWERS: tuple[EventKind, ...] = ("rollout.started", "rollout.refused", "rollout.aborted")
_TAKEN = ("champion", "canary", "shadow", "fallback", "cascade", "draft", "direct")
Name = Annotated[str, typer.Argument(help="The public name.")]
Override = Annotated[
    str | None, typer.Option(help="Why a model without a passing decision may answer; kept in the ledger.")
]


@app.command()
def canary(
    name: Name,
    adapter: Annotated[
        str, typer.Option(help="The candidate; needs a passing decision against the champion.")
    ],
    weight: Annotated[
        float | None, typer.Option(min=0, max=1, help="Its share of the traffic, above 0 and below 1.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Steps, votes and limits, such as serving/rollouts/canary.yaml.")
    ] = None,
    override: Override = None,
) -> None:
    """Give a candidate a share of the traffic; it is aborted by itself when it fails or disappoints."""
    from llmops.registry.rollout_plans import CanaryPlan, load_canary_plan
    from llmops.registry.rollout_requests import Draft

    if (plan is None) == (weight is None):
        raise BadRequest("rollout canary: give either --weight or --plan")
    if weight is not None and not 0 < weight < 1:
        raise BadRequest(
            f"rollout canary: --weight {weight:g} is no share between 0 and 1; promote gives it all"
        )
    declared = load_canary_plan(plan) if plan else CanaryPlan(steps=(float(weight or 0),))
    registry = Registry.of(find_workspace())
    arm = RolloutArm("canary", registry.adapter(adapter).adapter, declared.steps[-1])
    _begin(
        registry,
        name,
        Draft("canary", (arm,), declared.steps, declared.vote_rule(), declared.slo_rule(), reason=override),
    )


@app.command()
def ab(
    name: Name,
    arm: Annotated[
        list[str],
        typer.Option(help="An arm as NAME=ADAPTER:SHARE; the champion keeps what is left. Repeatable."),
    ],
    override: Override = None,
) -> None:
    """Compare adapters on live traffic: a user stays with one arm, and the log tells how likely each choice was."""
    from llmops.registry.rollout_requests import Draft

    registry = Registry.of(find_workspace())
    arms = tuple(_arm(registry, text) for text in arm)
    if len({a.name for a in arms}) < len(arms) or len({a.model for a in arms}) < len(arms):
        raise BadRequest("rollout ab: two arms have one name or one adapter; give each its own")
    if sum(a.weight for a in arms) > 1:
        raise BadRequest(
            f"rollout ab: the shares add up to {sum(a.weight for a in arms):g}; at most 1 in all"
        )
    _begin(registry, name, Draft("ab", arms, reason=override))


def _arm(registry: Registry, text: str) -> RolloutArm:
    found = _ARM.fullmatch(text)
    if found is None or not 0 < float(found["weight"]) < 1 or found["name"] in _TAKEN:
        raise BadRequest(
            f"rollout ab: --arm {text} is not NAME=ADAPTER:SHARE with a share between 0 and 1 (names that are taken: "
            f"{', '.join(_TAKEN)})"
        )
    return RolloutArm(found["name"], registry.adapter(found["model"]).adapter, float(found["weight"]))


@app.command()
def shadow(
    name: Name,
    adapter: Annotated[
        str, typer.Option(help="The adapter that is asked as well; no client sees its answers.")
    ],
    sample: Annotated[float, typer.Option(min=0.0001, max=1, help="Share of requests it is asked.")] = 0.1,
    max_running: Annotated[int, typer.Option(min=1, help="Shadow requests at once.")] = 2,
    max_busy: Annotated[
        int, typer.Option(min=1, help="Requests under way in the engine, above which no shadow is started.")
    ] = 4,
) -> None:
    """Ask another adapter beside the champion: its answers are logged, kept for rating, and shown to no client."""
    from llmops.registry.rollout_requests import Draft

    registry = Registry.of(find_workspace())
    arm = RolloutArm("shadow", registry.adapter(adapter).adapter)
    _begin(registry, name, Draft("shadow", (arm,), shadow=ShadowRule(sample, max_running, max_busy)))


@app.command()
def fallback(
    name: Name,
    to: Annotated[str, typer.Option(help="What answers instead: `base`, or an adapter.")],
    override: Override = None,
) -> None:
    """Answer from another model when the chosen one fails before its first byte."""
    from llmops.registry.rollout_requests import Draft

    registry = Registry.of(find_workspace())
    arm = RolloutArm("fallback", _model(registry, name, to))
    _begin(registry, name, Draft("fallback", (arm,), reason=override))


@app.command()
def cascade(
    name: Name,
    first: Annotated[str, typer.Option(help="What is asked first: `base`, or an adapter.")],
    min_mean_logprob: Annotated[
        float | None,
        typer.Option(max=0, help="Pass its answer on if its tokens' mean log-probability is at least this."),
    ] = None,
    max_characters: Annotated[
        int | None, typer.Option(min=1, help="Prompts longer than this go to the champion at once.")
    ] = None,
    override: Override = None,
) -> None:
    """Ask a cheaper model first, and the champion when the prompt is long or the first answer is unsure."""
    from llmops.registry.rollout_requests import Draft

    if min_mean_logprob is None and max_characters is None:
        raise BadRequest("rollout cascade: give --min-mean-logprob, --max-characters, or both")
    registry = Registry.of(find_workspace())
    arm = RolloutArm("cascade", _model(registry, name, first))
    rule = CascadeRule(max_characters, min_mean_logprob)
    _begin(registry, name, Draft("cascade", (arm,), cascade=rule, reason=override))


def _model(registry: Registry, name: str, reference: str) -> str:
    """The digest of an adapter, or of the base under the name's champion."""
    if reference.partition("@")[0] != "base":
        return registry.adapter(reference).adapter
    champion = name_state(registry, name).champion_adapter
    if champion is None:
        raise BadRequest(f"rollout {name}: no champion yet; `llmops release promote {name}` comes first")
    base = registry.adapter(champion).base
    if reference not in ("base", f"base@{short(base)}"):
        raise BadRequest(
            f"rollout {name}: {reference} is not the base of its champion; that is base@{short(base)}"
        )
    return base


@app.command()
def promote(name: Name) -> None:
    """Make the canary the champion, on the decision it stands on; the same checks as `llmops release promote`."""
    from llmops.serving.server import running

    workspace = find_workspace()
    registry = Registry.of(workspace)
    found = [s for s in rollouts_of(registry, name) if s.phase == "running" and s.rollout.kind == "canary"]
    if not found:
        raise BadRequest(f"rollout {name}: no canary runs; `llmops rollout status` shows what does")
    decision = found[0].rollout.arms[0].decision
    if decision is None:
        raise ReleaseRefused(
            f"rollout {name}: the canary runs on an override ({found[0].rollout.reason}); evaluate it and run `llmops "
            f"gate check`, then `llmops release promote {name}`"
        )
    serving = running(workspace)
    event, release = request_promotion(registry, name, serving.engine if serving else None, decision)
    settle(workspace, registry, event, release)


@app.command()
def abort(
    name: Name,
    kind: Annotated[
        str | None, typer.Option(help="Which, when a name has several: canary, ab, shadow ...")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the record.")] = "asked for",
) -> None:
    """Take a rollout's traffic away at once; the champion answers everything again."""
    from llmops.registry.rollout_requests import request_abort

    registry = Registry.of(find_workspace())
    event, state = request_abort(registry, name, _kind(kind), reason)
    _settle(registry, event, state.digest, f"{name}: {state.rollout.kind} aborted")


def _kind(given: str | None) -> RolloutKind | None:
    known: tuple[RolloutKind, ...] = get_args(RolloutKind)
    for kind in known:
        if given == kind:
            return kind
    if given is not None:
        raise BadRequest(f"rollout: --kind {given} is none; use one of {', '.join(known)}")
    return None


app.command()(status)


def _begin(registry: Registry, name: str, draft: Draft) -> None:
    """Ask for a rollout and wait for the gateway's answer."""
    from llmops.registry.rollout_requests import request_rollout
    from llmops.serving.server import running

    serving = running(find_workspace())
    event, rollout = request_rollout(registry, name, draft, serving.engine if serving else None)
    models = ", ".join(called(registry, arm.model) for arm in rollout.arms)
    _settle(registry, event, rollout.digest(), f"{name}: {rollout.kind} {models}")


def _settle(registry: Registry, event: Event, digest: str, what: str) -> None:
    """Wait for the gateway's answer to a request about a rollout and print it."""
    from llmops.serving.seat import somebody_serves

    if not somebody_serves(find_workspace()):
        typer.echo(f"recorded, not serving: {what} takes effect when `llmops serve` starts")
        return
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        for answer in registry.ledger.events(*ANSWERS, after=event.seq):
            if answer.body["rollout"] != digest:
                continue
            if answer.kind == "rollout.refused":
                raise ReleaseRefused(f"{what}: the gateway refused: {answer.body['reason']}")
            typer.echo(f"{what}  (event {answer.seq})")
            return
        time.sleep(POLL_S)
    raise CouldNotRun(
        f"{what}: the gateway did not answer in {ANSWER_TIMEOUT_S:.0f} s; see `llmops rollout status`"
    )
