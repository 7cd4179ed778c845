"""`llmops quickstart`: the loop from a base model to a served release, each step a command of its own."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import SELF
from llmops.registry.adapters import Registry
from llmops.registry.names import name_state
from llmops.settings import Workspace, api_headers, find_workspace

TIMES_FILE = "quickstart.json"


@dataclass(frozen=True)
class Step:
    """One command of the loop; `usual_s` is its time on 2 CPU cores, for the first estimate of what is left."""

    title: str
    command: tuple[str, ...]
    usual_s: float


@dataclass(frozen=True)
class Paths:
    """The files that name what the loop works on."""

    data: Path
    recipe: Path
    profile: Path
    suite: Path
    gate: Path


def quickstart(
    data: Annotated[Path, typer.Option(help="Data file.")] = Path("data/docstrings.yaml"),
    recipe: Annotated[Path, typer.Option(help="Recipe.")] = Path("recipes/docstrings-sft.yaml"),
    profile: Annotated[Path, typer.Option(help="Serving profile.")] = Path("serving/local.yaml"),
    suite: Annotated[Path, typer.Option(help="Suite.")] = Path("evals/suites/docstrings.yaml"),
    gate: Annotated[Path, typer.Option(help="Gate.")] = Path("evals/gates/docstrings.yaml"),
    port: Annotated[int | None, typer.Option(help="Port of the endpoint, if the profile's is taken.")] = None,
) -> None:
    """Fetch, build, train, serve, evaluate, gate, release; leaves the endpoint running (with CI=1 it stops it)."""
    from llmops.evals.gate import load_gate

    workspace = find_workspace()
    public_name = load_gate(gate).public_name
    paths = Paths(data, recipe, profile, suite, gate)
    steps = _steps(paths, public_name, port)
    if name_state(Registry.of(workspace), public_name).champion:
        typer.echo(f"{public_name} has a champion already; only serving it (delete .llmops to begin again)")
        steps = [step for step in steps if step.command[0] == "serve"]
    try:
        _run(steps, workspace)
        url = _ask(workspace, public_name)
        if not _in_ci():
            _what_next(url, public_name, workspace)
    finally:
        if _in_ci():
            _command(("stop",))


def _steps(paths: Paths, public_name: str, port: int | None) -> list[Step]:
    serve = ("serve", str(paths.profile), "--detach", *(("--port", str(port)) if port is not None else ()))
    return [
        Step("fetch the base model", ("base", "fetch", str(paths.recipe)), 25),
        Step("build the data", ("data", "build", str(paths.data)), 5),
        Step("fine-tune", ("finetune", str(paths.recipe)), 200),
        Step("serve", serve, 8),
        Step("evaluate base and adapter", ("eval", str(paths.suite), "--gate", str(paths.gate)), 230),
        Step("decide", ("gate", "check", str(paths.gate)), 2),
        Step("release", ("release", "promote", public_name), 1),
    ]


def _run(steps: list[Step], workspace: Workspace) -> None:
    """Run the steps in order; the first that fails ends the quickstart with its own exit code."""
    if any(step.command[0] == "serve" for step in steps) and _serving(workspace):
        steps = [step for step in steps if step.command[0] != "serve"]
    times: dict[str, float] = {}
    for i, step in enumerate(steps):
        left = sum(s.usual_s for s in steps[i:])
        typer.echo(
            f"\n[{i + 1}/{len(steps)}] {step.title}: llmops {' '.join(step.command)}   (about {_minutes(left)} left)"
        )
        started = time.monotonic()
        code = _command(step.command)
        times[step.title] = round(time.monotonic() - started, 1)
        if code:
            typer.echo(f"quickstart: stopped at `llmops {' '.join(step.command)}` (exit {code})", err=True)
            raise typer.Exit(code)
        typer.echo(f"      took {times[step.title]:.0f} s")
    (workspace.state / TIMES_FILE).write_text(json.dumps(times, indent=1) + "\n")
    typer.echo(f"\nall steps took {_minutes(sum(times.values()))}")


def _command(arguments: tuple[str, ...]) -> int:
    return subprocess.run([*SELF, *arguments], check=False).returncode


def _serving(workspace: Workspace) -> str | None:
    from llmops.serving.server import running

    info = running(workspace)
    return info.url if info else None


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


_QUESTION = "Say in one sentence what this Python function does.\\n\\ndef add(a, b): return a + b"
_EXAMPLE = """\
def area(width, height):
    if width < 0 or height < 0:
        raise ValueError("negative side")
    return width * height"""


def _ask(workspace: Workspace, public_name: str) -> str:
    """Ask the released name one question over HTTP and show who answered; returns the endpoint's URL."""
    url = _serving(workspace) or ""
    body = {
        "model": public_name,
        "messages": [{"role": "user", "content": _EXAMPLE}],
        "max_tokens": 40,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **api_headers()},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)["choices"][0]["message"]["content"]
        model = response.headers["x-llmops-model"]
    typer.echo(
        f"\n{public_name} was asked what `area(width, height)` does. It answered, from adapter {model[:12]}:"
        f"\n  {answer}"
    )
    return url


def _what_next(url: str, public_name: str, workspace: Workspace) -> None:
    page = max(
        workspace.runs.glob("*/report.html"), key=lambda path: path.stat().st_mtime, default=workspace.runs
    )
    typer.echo(
        f"""
The endpoint is running: {url}/v1  (model `{public_name}`)

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{{"model": "{public_name}", "messages": [{{"role": "user", "content": "{_QUESTION}"}}]}}'

Open next:
  {page}
                         base and adapter side by side
  llmops feedback open feedback_ui/docstrings-train.yaml
                         people rate its answers; their votes train the next round
  llmops status          champion, evidence, what waits
  llmops ledger verify   the chain of what happened
  llmops stop            stop the endpoint"""
    )
