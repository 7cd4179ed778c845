"""`llmops key`: who may call the endpoint and sign in to the rating page."""

from __future__ import annotations

import getpass
import sys
from dataclasses import asdict
from typing import Annotated, get_args

import typer

from llmops.auth import Created, Key, KeyLimits, Keys, NewKey
from llmops.cli.output import as_json, table
from llmops.errors import BadRequest
from llmops.records import AccessRole
from llmops.schema import JsonDict
from llmops.settings import find_workspace, now

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Who may call the endpoint and the rating page."
)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who gets it: a person or a program.")],
    role: Annotated[
        str,
        typer.Option(
            help="client: completions; rater: the rating page; operator: also name@digest and /llmops; admin: all."
        ),
    ] = "client",
    tenant: Annotated[str, typer.Option(help="Whom its use is counted for.")] = "local",
    model: Annotated[
        list[str] | None,
        typer.Option(help="A public model name a client may use; may be repeated. Default: all."),
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(help="More are answered 429.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(help="Of prompts and answers together.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Quota of a day (UTC).")] = None,
    days: Annotated[int | None, typer.Option(help="Until it expires; default: never.")] = None,
    password: Annotated[
        bool,
        typer.Option(
            "--password", help="For a rater: a password instead of a key; asked for, or read from stdin."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the key's record, and the key.")] = False,
) -> None:
    """Make a key and print it, once: only its hash is kept."""
    keys = Keys.of(find_workspace())
    limits = KeyLimits(requests_per_minute, tokens_per_minute, tokens_per_day)
    chosen = _typed_password(name) if password else None
    first = not keys.required()
    made = keys.create(NewKey(name, _role(role), tenant, tuple(model or ()), limits, days, chosen))
    if json:
        as_json(_shown(made.key) | ({"token": made.token} if made.token else {}))
    else:
        _tell(made)
    if first:
        typer.echo(
            "from now on nothing is open without a key; tools read theirs from LLMOPS_API_KEY", err=True
        )


@app.command("list")
def list_(json: Annotated[bool, typer.Option("--json", help="Print the records.")] = False) -> None:
    """Print all keys, never their secrets: who, role, scope, limits, and whether they still open anything."""
    found = Keys.of(find_workspace()).list()
    if json:
        as_json([_shown(key) for key in found])
        return
    rows = [
        (key.id, key.name, key.kind, key.role, key.tenant, _scope(key), _limits(key.limits), _state(key))
        for key in found
    ]
    typer.echo(table(("id", "name", "sort", "role", "tenant", "models", "limits", "state"), rows))


@app.command()
def revoke(key: Annotated[str, typer.Argument(help="Its id, or the name of its holder.")]) -> None:
    """Make a key useless: gateways that run refuse it within 2 seconds."""
    gone = Keys.of(find_workspace()).revoke(key)
    typer.echo(f"revoked  {gone.id}  {gone.name}")


def _typed_password(name: str) -> str:
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first = getpass.getpass(f"password of {name}: ")
    if getpass.getpass("again: ") != first:
        raise BadRequest("key: the two passwords differ; try again")
    return first


def _role(given: str) -> AccessRole:
    for role in get_args(AccessRole):
        if role == given:
            found: AccessRole = role
            return found
    raise BadRequest(f"--role: {given!r} is none; use {', '.join(get_args(AccessRole))}")


def _tell(made: Created) -> None:
    key = made.key
    typer.echo(
        f"{key.kind}     {key.id}  {key.name}, {key.role} of {key.tenant}, models: {_scope(key)}".strip()
    )
    if made.token is not None:
        typer.echo(made.token)
        typer.echo("keep it now: it is not stored and cannot be shown again", err=True)


def _shown(key: Key) -> JsonDict:
    return asdict(key) | {
        "names": None if key.names is None else sorted(key.names),
        "live": key.live(now()),
    }


def _scope(key: Key) -> str:
    if key.role == "rater":
        return "-"
    return "all" if key.names is None else ", ".join(sorted(key.names))


def _limits(limits: KeyLimits) -> str:
    units = {"requests_per_minute": "req/min", "tokens_per_minute": "tok/min", "tokens_per_day": "tok/day"}
    said = [f"{value:,} {units[name]}" for name, value in asdict(limits).items() if value is not None]
    return ", ".join(said) or "none"


def _state(key: Key) -> str:
    if key.revoked_at is not None:
        return f"revoked {key.revoked_at}"
    if key.expires_at is None:
        return "live"
    return f"{'live until' if key.live(now()) else 'expired'} {key.expires_at}"
