"""`llmops serve` and `llmops stop`: the endpoint of a workspace."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import SELF, progress
from llmops.errors import CouldNotRun
from llmops.settings import Workspace, find_workspace

DETACHED_LOG = "serve.log"
START_TIMEOUT_S = 900.0


def serve(
    profile: Annotated[Path, typer.Argument(help="A profile such as serving/local.yaml.")],
    port: Annotated[
        int | None, typer.Option(help="Listen on this port instead of the profile's (0: any free).")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it answers; `llmops stop` ends it.")
    ] = False,
) -> None:
    """Serve the base, registered adapters and released names behind one OpenAI-compatible endpoint."""
    workspace = find_workspace()
    if detach:
        typer.echo(f"serving  {start_detached(workspace, profile, port)}")
        return
    from llmops.serving.server import serve as run

    run(profile, workspace, port, lambda url: typer.echo(f"serving  {url}  (Ctrl-C stops)"))


def stop() -> None:
    """Stop the workspace's endpoint: running requests finish, then the engine ends."""
    from llmops.serving.server import stop as end

    stopped = end(find_workspace())
    typer.echo("stopped" if stopped else "nothing was serving")


def start_detached(workspace: Workspace, profile: Path, port: int | None) -> str:
    """Start `llmops serve` as a process of its own and wait until it answers; returns its URL.

    Raises:
        CouldNotRun: it ended first (its own last line is in the message), or did not answer in time.
    """
    from llmops.serving.server import running

    workspace.logs.mkdir(parents=True, exist_ok=True)
    log = workspace.logs / DETACHED_LOG
    command = [*SELF, "serve", str(profile)]
    if port is not None:
        command += ["--port", str(port)]
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=Path.cwd(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    started = time.monotonic()
    with progress("serve") as report:
        while time.monotonic() - started < START_TIMEOUT_S:
            info = running(workspace)
            if info is not None and info.pid == child.pid:
                return info.url
            if child.poll() is not None:
                raise CouldNotRun(_last_error(log) or f"serve: ended with code {child.returncode}; see {log}")
            report(0, 0, f"the engine is starting, {time.monotonic() - started:.0f} s")
            time.sleep(0.1)
    child.terminate()
    raise CouldNotRun(f"serve: did not answer within {START_TIMEOUT_S:.0f} s; see {log}")


def _last_error(log: Path) -> str | None:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error: ")]
    return lines[-1].removeprefix("error: ") if lines else None
