"""`llmops engine`: change the engine under a running gateway (base model, quantisation, version), and go back."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmops.cli.output import as_json, progress, table
from llmops.errors import BadRequest, CouldNotRun, LlmopsError
from llmops.ledger import Event
from llmops.records import EngineSignature, StartedEngine
from llmops.registry.adapters import Registry
from llmops.schema import JsonDict, short
from llmops.settings import Workspace, find_workspace

if TYPE_CHECKING:
    from llmops.registry.engine_moves import Action
    from llmops.serving.lock import Running
    from llmops.serving.profile import ServeProfile

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Change the engine under a running gateway, and go back.",
)

ANSWER_TIMEOUT_S = 300.0
POLL_S = 0.02
QUIET_S = 2.0  # before it is said that something is waited for
Json = Annotated[bool, typer.Option("--json", help="Print it as JSON.")]


class EngineRefused(LlmopsError):
    """The gateway refused what was asked of its engines; ends the command with the reason's own exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Keep the exit code."""
        super().__init__(message)
        self.exit_code = exit_code


@app.command()
def start(
    profile: Annotated[
        Path, typer.Argument(help="A profile such as serving/vllm.yaml: its base and engine.")
    ],
) -> None:
    """Start a second engine, green, beside the one that serves: operators reach it, clients do not.

    Every public name's champion is verified, loaded and proved on it. `llmops eval ... --engine green` measures there.
    """
    from llmops.serving.profile import load_profile
    from llmops.serving.standing import settings_of

    workspace, registry = _running_workspace()
    given = load_profile(profile)
    if ignored := _ignored(given):
        typer.echo(f"ignored  {', '.join(ignored)}: the running gateway keeps its own")
    digest = registry.store.put_record(settings_of(given))
    wait_s = given.timeouts.engine_start_s + ANSWER_TIMEOUT_S
    answer = _ask(workspace, registry, "start", {"settings": digest}, wait_s)
    started = registry.store.get_record(StartedEngine, str(answer.body["started"]))
    typer.echo(f"green    {_said(started.signature)}  (event {answer.seq})")
    for adapter in answer.body["adapters"]:
        typer.echo(f"proved   {registry.adapter(str(adapter)).model_name}")
    for adapter, reason in answer.body["problems"].items():
        typer.echo(f"NOT ON IT {short(str(adapter))}: {reason}")


@app.command()
def switch(
    release: Annotated[
        list[str] | None,
        typer.Option(help="NAME=ADAPTER: what a public name stands for on the new engine. Repeatable."),
    ] = None,
    retire_after: Annotated[
        float | None,
        typer.Option(min=0, help="End the old engine so many seconds later; it cannot be gone back to."),
    ] = None,
) -> None:
    """Have the second engine serve: every name's release needs a passing decision that was measured on it.

    No request fails: what runs on the old engine ends there. It stays loaded, and `llmops engine back` returns to it.
    """
    from llmops.registry.engine_moves import newest_started, plan_switch

    workspace, registry = _running_workspace()
    started = newest_started(registry)
    chosen = dict(_chosen(registry, text) for text in release or ())
    releases = plan_switch(registry, started.signature, chosen)
    body: JsonDict = {
        "engine": _digest(started.signature), "releases": {name: r.digest() for name, r in releases.items()},
    }  # fmt: skip
    if retire_after is not None:
        body["retire_after_s"] = retire_after
    answer = _ask(workspace, registry, "switch", body, ANSWER_TIMEOUT_S)
    typer.echo(f"serving  {_said(started.signature)}  (event {answer.seq})")
    for name, moved in releases.items():
        typer.echo(f"{name} -> {registry.adapter(moved.adapter).model_name}")


@app.command()
def back() -> None:
    """Return to the engine before the switch, which is loaded still, with what each name stood for there."""
    workspace, registry = _running_workspace()
    answer = _ask(workspace, registry, "back", {}, ANSWER_TIMEOUT_S)
    typer.echo(f"serving  engine {short(str(answer.body['engine']))} again  (event {answer.seq})")


@app.command()
def retire() -> None:
    """End the engine that does not serve, once what runs on it is answered."""
    workspace, registry = _running_workspace()
    from llmops.serving.profile import Timeouts

    answer = _ask(workspace, registry, "retire", {}, Timeouts().answer_s + ANSWER_TIMEOUT_S)
    typer.echo(f"retired  engine {short(str(answer.body['engine']))}  (event {answer.seq})")


@app.command()
def status(json: Json = False) -> None:
    """Show the engine that serves and the one that stands by."""
    info = _running(find_workspace())
    engines = gateway_at(info.url)["engines"]
    if json:
        as_json(engines)
        return
    rows = [
        (
            engine["colour"],
            "serves" if engine["serves"] else "stands by",
            engine["down"] or described(engine),
            engine["n_requests"],
            ", ".join(engine["adapters"]) or "none",
        )
        for engine in engines
    ]
    typer.echo(table(("engine", "state", "what", "requests", "adapters"), rows))


def gateway_at(url: str) -> dict[str, Any]:
    """What the gateway at `url` says of itself; its `engines`, the one that serves first.

    Raises:
        CouldNotRun: it does not say.
    """
    import json
    import urllib.request

    from llmops.settings import api_headers

    try:
        request = urllib.request.Request(f"{url}/llmops/status", headers=api_headers())
        with urllib.request.urlopen(request, timeout=5) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except (OSError, ValueError) as error:
        raise CouldNotRun(
            f"engine status: {url} does not say ({error}); set LLMOPS_API_KEY to an operator's key"
        ) from None


def described(engine: dict[str, Any]) -> str:
    """One engine of `gateway_at` in words."""
    if engine["engine"] is None:
        return "starting"
    return _said(EngineSignature(**engine["engine"]))


# ---------------------------------------------------------------- asking


def _running(workspace: Workspace) -> Running:
    from llmops.serving.server import running

    info = running(workspace)
    if info is None:
        raise BadRequest(
            "engine: nothing serves in this workspace; `llmops serve PROFILE` starts with that engine"
        )
    return info


def _running_workspace() -> tuple[Workspace, Registry]:
    workspace = find_workspace()
    _running(workspace)
    return workspace, Registry.of(workspace)


def _ask(workspace: Workspace, registry: Registry, action: Action, body: JsonDict, wait_s: float) -> Event:
    """Ask the gateway for something and wait for its answer."""
    from llmops.registry.engine_moves import answer_to, request_engine
    from llmops.serving.server import running

    request = request_engine(registry, action, body)
    asked = time.monotonic()
    deadline = asked + wait_s
    with progress(f"engine {action}") as report:
        while time.monotonic() < deadline:
            answer = answer_to(registry, request)
            if answer is not None:
                break
            if running(workspace) is None:
                raise CouldNotRun(f"engine {action}: the gateway ended meanwhile; see its log")
            if time.monotonic() > asked + QUIET_S:
                report(0, 0, "waits for the gateway")
            time.sleep(POLL_S)
        else:
            raise CouldNotRun(
                f"engine {action}: the gateway did not answer in {wait_s:.0f} s; see `llmops engine status`"
            )
    if answer.kind == "engine.refused":
        raise EngineRefused(str(answer.body["reason"]), int(answer.body["exit_code"]))
    return answer


def _chosen(registry: Registry, text: str) -> tuple[str, str]:
    name, found, adapter = text.partition("=")
    if not (name and found and adapter):
        raise BadRequest(f"engine switch: --release {text} is not NAME=ADAPTER")
    return name, registry.adapter(adapter).adapter


def _ignored(profile: ServeProfile) -> list[str]:
    """Settings that the file has and a second engine does not read."""
    from llmops.serving.standing import ENGINE_FIELDS

    return sorted(profile.model_fields_set - set(ENGINE_FIELDS))


def _digest(engine: EngineSignature) -> str:
    from llmops.engines.endpoint import engine_digest

    return engine_digest(engine)


def _said(engine: EngineSignature) -> str:
    quantised = f" {engine.quantization}" if engine.quantization else ""
    return (
        f"{engine.engine} {engine.version} {engine.dtype}{quantised} on {engine.device}, base {short(engine.base)}, "
        f"signature {short(_digest(engine))}"
    )
