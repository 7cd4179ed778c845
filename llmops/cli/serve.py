"""`llmops serve` and `llmops stop`: the endpoint of a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.output import Detached, start_detached
from llmops.settings import Workspace, find_workspace

DETACHED_LOG = "serve.log"


def serve(
    profile: Annotated[Path, typer.Argument(help="A profile such as serving/local.yaml.")],
    port: Annotated[
        int | None, typer.Option(help="Listen on this port instead of the profile's (0: any free).")
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Listen on this address; any but loopback needs a key first (`llmops key create`)."
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file; with --tls-key the endpoint speaks HTTPS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it answers; `llmops stop` ends it.")
    ] = False,
) -> None:
    """Serve the base, registered adapters and released names behind one OpenAI-compatible endpoint."""
    workspace = find_workspace()
    given = {"port": port, "host": host, "tls.certificate": tls_certificate, "tls.key": tls_key}
    changes = tuple((name, value) for name, value in given.items() if value is not None)
    if detach:
        options = (f"--{name.replace('.', '-')}={value}" for name, value in changes)
        words = ("serve", str(profile), *options)
        url = start_detached(
            Detached(words, workspace.logs / DETACHED_LOG, lambda pid: _url_of(workspace, pid))
        )
        typer.echo(f"serving  {url}")
        return
    from llmops.serving.profile import load_profile
    from llmops.serving.server import serve as run

    run(
        load_profile(profile, changes),
        workspace,
        lambda url: typer.echo(f"serving  {url}  (Ctrl-C stops)"),
    )


def stop() -> None:
    """Stop the workspace's endpoint: running requests finish, then the engine ends."""
    from llmops.serving.server import stop as end

    stopped = end(find_workspace())
    typer.echo("stopped" if stopped else "nothing was serving")


def _url_of(workspace: Workspace, pid: int) -> str | None:
    """The address at which process `pid` answers; None while it is starting."""
    from llmops.serving.server import running

    info = running(workspace)
    return info.url if info is not None and info.pid == pid else None
