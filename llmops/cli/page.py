"""`llmops feedback ui` and `llmops feedback stop`: the rating page of a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmops.cli.evaluate import endpoint_of
from llmops.cli.output import Detached, start_detached
from llmops.errors import CouldNotRun
from llmops.holder import AlreadyHeld, HeldFile
from llmops.settings import Workspace, find_workspace

PAGE_LOG = "page.log"
STOP_TIMEOUT_S = 30.0


def ui(
    name: Annotated[
        str | None, typer.Argument(help="The campaign's name; default: the newest open one.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Listen on this port (0: any free).")] = 7860,
    endpoint: Annotated[
        str | None,
        typer.Option(help="What answers typed prompts; default: this workspace's `llmops serve`."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Listen on this address; any but loopback needs somebody who can sign in."),
    ] = "127.0.0.1",
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file; with --tls-key the page speaks HTTPS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of the certificate's key.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it answers; `llmops feedback stop` ends it.")
    ] = False,
) -> None:
    """Serve the rating page until Ctrl-C: on this machine, or with --host for raters who sign in from elsewhere."""
    from llmops.feedback.address import Address
    from llmops.feedback.page import serve_page

    workspace = find_workspace()
    if detach:
        given = {"endpoint": endpoint, "tls-certificate": tls_certificate, "tls-key": tls_key}
        asked = [*([name] if name else []), *(f"--{word}={value}" for word, value in given.items() if value)]
        words = ("feedback", "ui", *asked, "--port", str(port), "--host", host)
        url = start_detached(Detached(words, workspace.logs / PAGE_LOG, lambda pid: _page_at(workspace, pid)))
        typer.echo(f"rating   {url}")
        return
    lock, at = _page_lock(workspace), Address(port, host, tls_certificate, tls_key)

    def ready(url: str) -> None:
        lock.tell({"url": url})
        typer.echo(f"rating   {url}  (Ctrl-C stops)")
        if not at.is_loopback and at.certificate is None:
            typer.echo(
                "note     not encrypted: give --tls-certificate, or put a proxy with TLS before it", err=True
            )

    try:
        with lock.held():
            serve_page(workspace, name, at, ready, lambda: endpoint or endpoint_of(workspace))
    except AlreadyHeld as error:
        raise CouldNotRun(
            f"feedback ui: process {error.owner.get('pid')} has this workspace's page at {error.owner.get('url')}; "
            "use it, or end it with `llmops feedback stop`"
        ) from None


def stop() -> None:
    """End this workspace's rating page; what was saved stays."""
    ended = _page_lock(find_workspace()).end(STOP_TIMEOUT_S)
    typer.echo("stopped" if ended else "no page was served")


def _page_lock(workspace: Workspace) -> HeldFile:
    return HeldFile(workspace.state / "page.lock")


def _page_at(workspace: Workspace, pid: int) -> str | None:
    """The address of the page that process `pid` serves; None while it is starting."""
    owner = _page_lock(workspace).owner() or {}
    return str(owner["url"]) if owner.get("pid") == pid and "url" in owner else None
